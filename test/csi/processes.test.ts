/**
 * The whole driver as it runs on a node: controller, server and node as processes, kernel nbd, real mounts.
 * csi-sanity, and what becomes of a claim when processes are killed around it.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, open, readdir, readFile, writeFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import { listMounts, mountAt } from "../../src/host/mount.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { blockCapability, mountCapability } from "./csi-client.ts";
import { CLUSTER_NODE_ID, ProcessCluster, type ProcessName } from "./processes.ts";
import { runSanity } from "./run-sanity.ts";

let cluster: ProcessCluster;

/** Drives one claim the way Kubernetes does. */
class Claim {
  readonly name: string;
  readonly capability: object;
  volumeId = "";
  publishContext: Record<string, string> = {};

  constructor(name: string, capability: object = mountCapability) {
    this.name = name;
    this.capability = capability;
  }

  get staging(): string {
    return `${cluster.kubeletDir}/${this.name}-staging`;
  }

  get target(): string {
    return `${cluster.kubeletDir}/${this.name}-target`;
  }

  /** Steps from nothing to a mounted volume, in order. */
  up(): (() => Promise<void>)[] {
    const { controller, node } = cluster.clients;
    const { capability: volumeCapability } = this;
    return [
      async () => {
        const capacityRange = { requiredBytes: String(256 * 1024 ** 2) };
        const request = { name: this.name, volumeCapabilities: [volumeCapability], capacityRange };
        const answer = await controller.call<{ volume: { volumeId: string } }>("Controller", "createVolume", request);
        this.volumeId = answer.volume.volumeId;
      },
      async () => {
        const request = { volumeId: this.volumeId, nodeId: CLUSTER_NODE_ID, volumeCapability };
        const answer = await controller.call<{ publishContext: Record<string, string> }>(
          "Controller",
          "controllerPublishVolume",
          request,
        );
        this.publishContext = answer.publishContext;
      },
      async () => {
        await mkdir(this.staging, { recursive: true });
        await node.call("Node", "nodeStageVolume", this.#nodeRequest());
      },
      async () => {
        await node.call("Node", "nodePublishVolume", this.#nodeRequest());
      },
    ];
  }

  /** Steps back to nothing, in order. */
  down(): (() => Promise<void>)[] {
    const { controller, node } = cluster.clients;
    return [
      async () => void (await node.call("Node", "nodeUnpublishVolume", this.#nodeRequest())),
      async () => void (await node.call("Node", "nodeUnstageVolume", this.#nodeRequest())),
      async () => {
        const request = { volumeId: this.volumeId, nodeId: CLUSTER_NODE_ID };
        await controller.call("Controller", "controllerUnpublishVolume", request);
      },
      async () => void (await controller.call("Controller", "deleteVolume", { volumeId: this.volumeId })),
    ];
  }

  #nodeRequest(): object {
    const { volumeId, publishContext, capability } = this;
    const paths = { stagingTargetPath: this.staging, targetPath: this.target };
    return { volumeId, publishContext, volumeCapability: capability, ...paths };
  }
}

/** As a sidecar or the kubelet does: again, until the answer is not "ask again". */
async function insist(step: () => Promise<void>): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      await step();
      return;
    } catch (error) {
      const answer = (error as { code?: number }).code;
      const again = answer === code.UNAVAILABLE || answer === code.ABORTED || answer === code.DEADLINE_EXCEEDED;
      if (!again || attempt > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/** True while a mkfs works on one of our devices. */
async function isMkfsRunning(): Promise<boolean> {
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const commandLine = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (/^\S*mke2fs\0.*\/dev\/nbd/.test(commandLine)) return true;
  }
  return false;
}

async function storedKeys(): Promise<string[]> {
  const names = await readdir(cluster.path("store"), { recursive: true, withFileTypes: true });
  return names
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath}/${entry.name}`)
    .filter((path) => path.includes("volumes/") || path.includes("/log/"));
}

function definitions(): void {
  before(async () => {
    cluster = await ProcessCluster.start();
  });
  after(() => cluster.close());

  // Only the node service is another one where volumes are devices.
  for (const { access, focus, least } of [
    { access: "mount", focus: "", least: 45 },
    { access: "block", focus: "Node Service", least: 16 },
  ] as const) {
    test(`csi-sanity passes against the processes, volumes as ${access}`, async () => {
      const { controllerSocket, nodeSocket, kubeletDir: directory } = cluster;
      const run = { controllerSocket, nodeSocket, directory, access, focus, parameters: {}, timeoutMs: 240_000 };
      const result = await runSanity(run);
      assert.equal(result.failed, 0, result.output);
      assert.ok(result.passed >= least, `only ${result.passed} of its tests ran`);
    });
  }

  test("node and controller killed after each of their steps change nothing, and a deleted volume leaves nothing", async () => {
    const claim = new Claim("restarted");
    const content = "x".repeat(100_000);
    const [create, publish, stage, bind] = claim.up();
    const [unbind, unstage, unpublish] = claim.down();
    const killed = async (name: ProcessName, ...steps: (() => Promise<void>)[]): Promise<void> => {
      for (const step of steps) {
        await insist(step);
        await cluster.restartProcess(name, "SIGKILL");
        await insist(step);
      }
    };
    await killed("controller", create, publish);
    await killed("node", stage, bind);
    await writeFile(`${claim.target}/file`, content);
    await killed("node", unbind, unstage);
    await killed("controller", unpublish);
    assert.equal(existsSync(claim.target), false);
    for (const step of claim.up()) await insist(step);
    assert.equal(await readFile(`${claim.target}/file`, "utf8"), content);
    for (const step of claim.down()) await insist(step);
    assert.deepEqual(await storedKeys(), []);
  });

  test("a server killed under a mounted volume is no error to its users once it is back", async () => {
    const claim = new Claim("server");
    for (const step of claim.up()) await insist(step);
    await writeFile(`${claim.target}/before`, "1");
    await cluster.stopProcess("server", "SIGKILL");
    const pending = writeFile(`${claim.target}/during`, "2");
    await cluster.startProcess("server");
    await pending;
    await insist(claim.up()[2]);
    assert.equal(await readFile(`${claim.target}/before`, "utf8"), "1");
    for (const step of claim.down()) await insist(step);
    assert.deepEqual(await storedKeys(), []);
  });

  test("node and server killed in the midst of mkfs: the next NodeStage makes the filesystem again", async () => {
    const wasMadeAgain = async (attempt: number): Promise<boolean> => {
      const claim = new Claim(`mkfs-${attempt}`);
      const [create, publish, stage] = claim.up();
      await create();
      await publish();
      let staged = false;
      const interrupted = stage().then(
        () => (staged = true),
        () => undefined,
      );
      while (!staged && !(await isMkfsRunning())) await new Promise((resolve) => setTimeout(resolve, 1));
      await Promise.all([cluster.stopProcess("server", "SIGKILL"), cluster.stopProcess("node", "SIGKILL")]);
      await interrupted;
      await cluster.startProcess("server");
      await cluster.startProcess("node");
      await insist(stage);
      assert.equal(mountAt(await listMounts(), claim.staging)?.fileSystem, "ext4");
      for (const step of claim.down()) await insist(step);
      const lines = (await cluster.logOf("node")).split("\n");
      return lines.some((line) => line.includes(claim.volumeId) && line.includes('"again":true'));
    };
    // A kill that comes a moment late finds mkfs ended: then another volume is tried.
    let attempt = 1;
    while (!(await wasMadeAgain(attempt))) {
      attempt += 1;
      assert.ok(attempt <= 5, "no kill hit mkfs");
    }
  });

  test("a raw device shows the same bytes after it was staged anew", async () => {
    const claim = new Claim("device", blockCapability);
    const bytes = Buffer.alloc(65_536, "raw");
    for (const step of claim.up()) await insist(step);
    await writeFile(claim.target, bytes, { flag: "r+" });
    for (const step of claim.down().slice(0, 2)) await insist(step);
    for (const step of claim.up().slice(2)) await insist(step);
    const device = await open(claim.target);
    const { buffer } = await device.read(Buffer.alloc(bytes.length), 0, bytes.length, 0);
    await device.close();
    assert.deepEqual(buffer, bytes);
    for (const step of claim.down()) await insist(step);
  });
}

kernelTests(
  { url: import.meta.url, name: "controller, server and node as processes", timeoutMs: 840_000, memoryMib: 3072 },
  definitions,
);
