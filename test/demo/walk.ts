/**
 * The way of one volume, as a user's claim goes it: made, mounted, filled, moved to another node, its server killed
 * under a write load, moved back, deleted. Each step says what it did; a check that does not hold throws.
 */
import { rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { listMounts, mountAt } from "../../src/host/mount.ts";
import { storedKeys } from "./demo-store.ts";
import { configuredDevices, KernelLog, kernelVersion, mountsBelow, namesIn, syncFileSystem } from "./kernel-view.ts";
import type { Laboratory } from "./laboratory.ts";
import { addTraffic, type DemoNode, noTraffic, type StoreTraffic, sumTraffic } from "./processes.ts";
import { formatBytes, formatCount, formatSeconds, Report } from "./report.ts";
import { chooseTree, compareTree, copyTree, type Manifest } from "./tree.ts";
import { WriteLoad } from "./write-load-process.ts";
import { compareLanes, writtenBytes } from "./write-load.ts";

const volumeSizeBytes = 8 * 1024 ** 3;
const sourceRoots = ["/usr/share", "/usr/lib", "/usr/include", resolve(import.meta.dirname, "../../node_modules")];
/** Acknowledged flushes before the server is killed, and after it is back. */
const flushesAround = 30;
/** How long the server stays away. */
const outageMs = 500;

/** Resolves when every check held. */
export async function walk(laboratory: Laboratory): Promise<void> {
  await new Walk(laboratory).run();
}

class Walk {
  readonly #lab: Laboratory;
  readonly #report: Report;
  #manifest: Manifest = { digests: new Map(), files: 0, bytes: 0 };
  #loadTotals: readonly number[] = [];
  /** All that processes which have ended had asked of the store. */
  #pastTraffic = noTraffic();

  constructor(lab: Laboratory) {
    this.#lab = lab;
    this.#report = new Report(lab.check);
  }

  async run(): Promise<void> {
    const [nodeA, nodeB] = this.#lab.nodes;
    await this.#start(nodeA);
    await this.#fill(nodeA);
    await this.#move(nodeA, nodeB);
    await this.#killServer(nodeB);
    await this.#moveBack(nodeB, nodeA);
    await this.#delete(nodeA);
  }

  async #start(node: DemoNode): Promise<void> {
    const report = this.#report;
    const { storeUrl } = this.#lab.settings;
    report.chapter(`Controller, server and node as processes (${await kernelVersion()}, store ${storeUrl})`);
    await report.step(async () => {
      await this.#lab.controller.start();
      return `controller ready, the store keeps conditional writes, pid ${this.#lab.controller.pid}`;
    });
    await report.step(async () => {
      await node.start();
      return `node A: server pid ${node.server.pid} and node pid ${node.node.pid} ready`;
    });
  }

  async #fill(node: DemoNode): Promise<void> {
    const report = this.#report;
    const { claim, check } = this.#lab;
    report.chapter("A claim becomes a filesystem");
    await report.step(async () => {
      await claim.create(volumeSizeBytes);
      return `CreateVolume: ${formatBytes(volumeSizeBytes)}, id ${claim.volumeId}`;
    });
    const before = await this.#traffic();
    await this.#mount(node);
    await report.step(async () => {
      const tree = chooseTree(sourceRoots);
      this.#manifest = await copyTree(tree, join(claim.targetPath, "tree"), check);
      const { files, bytes, digests } = this.#manifest;
      const links = digests.size - files;
      return `copied ${formatCount(files)} files (${formatBytes(bytes)}) and ${formatCount(links)} links of this machine`;
    });
    await report.step(async () => {
      await syncFileSystem(claim.targetPath);
      return "sync: everything is in the store";
    });
    await this.#unmount();
    await this.#sayTraffic(before);
  }

  async #move(from: DemoNode, to: DemoNode): Promise<void> {
    const report = this.#report;
    report.chapter("The volume on another node, from the store alone");
    await report.step(async () => {
      await this.#throwAway(from);
      return "node A ended, its journal and cache thrown away";
    });
    await report.step(async () => {
      await to.start();
      return `node B: server pid ${to.server.pid} and node pid ${to.node.pid} ready, empty directories`;
    });
    const before = await this.#traffic();
    await this.#mount(to);
    await this.#compareTree();
    await this.#sayTraffic(before);
  }

  async #killServer(node: DemoNode): Promise<void> {
    const report = this.#report;
    const { claim } = this.#lab;
    report.chapter("SIGKILL of the server in the midst of a write load");
    const log = await KernelLog.open();
    const load = new WriteLoad(claim.targetPath);
    this.#lab.load = load;
    await report.step(async () => {
      await load.untilFlushed(flushesAround);
      return `writing and flushing: ${load.flushes} flushes acknowledged, longest wait ${formatSeconds(load.longestStallMs / 1000)}`;
    });
    await report.step(async () => {
      const { pid } = node.server;
      this.#pastTraffic = addTraffic(this.#pastTraffic, await node.server.traffic());
      await node.server.stop("SIGKILL");
      await sleep(outageMs);
      await node.server.start();
      return `server killed (pid ${pid}), started again ${formatSeconds(outageMs / 1000)} later (pid ${node.server.pid}), ready`;
    });
    await report.step(async () => {
      await load.untilFlushed(flushesAround);
      await load.finish();
      this.#lab.load = undefined;
      this.#loadTotals = load.totals;
      const records = load.totals.reduce((sum, total) => sum + total, 0);
      return (
        `the writer went on and saw no error: ${load.flushes} flushes of ${formatBytes(writtenBytes(records))}, ` +
        `held up for ${formatSeconds(load.longestStallMs / 1000)} at most`
      );
    });
    const staged = mountAt(await listMounts(), claim.stagingPath);
    if (staged === undefined || !staged.options.includes("rw") || !staged.superOptions.includes("rw")) {
      throw new Error(
        `the filesystem is not mounted for writing any more: ${staged?.superOptions.join(",") ?? "gone"}`,
      );
    }
    if (log === undefined) report.say("the filesystem is still writable (this user may not read the kernel's log)");
    else {
      const lines = await log.trouble(staged.source.replace("/dev/", ""));
      if (lines.length > 0) throw new Error(`the kernel saw errors:\n${lines.join("\n")}`);
      report.say("the filesystem is still writable, and the kernel's log knows of no error");
    }
  }

  async #moveBack(from: DemoNode, to: DemoNode): Promise<void> {
    const report = this.#report;
    report.chapter("What the store holds after the crash, seen from the first node");
    await this.#unmount();
    await report.step(async () => {
      await this.#throwAway(from);
      await to.start();
      return "node B ended, its journal and cache thrown away; node A starts anew";
    });
    const before = await this.#traffic();
    await this.#mount(to);
    await this.#compareTree();
    await report.step(async () => {
      const differences = compareLanes(this.#lab.claim.targetPath, this.#loadTotals);
      mustBeSame(differences);
      return "every record of the write load is there as it was last flushed";
    });
    await this.#unmount();
    await this.#sayTraffic(before);
  }

  async #delete(node: DemoNode): Promise<void> {
    const report = this.#report;
    const { claim, directory, nodeIds, nodes } = this.#lab;
    report.chapter("Nothing is left behind");
    await report.step(async () => {
      const objects = (await this.#volumeKeys()).length;
      await claim.delete();
      const left = await this.#volumeKeys();
      if (left.length > 0) throw new Error(`objects are left in the store: ${left.slice(0, 5).join(", ")}`);
      return `DeleteVolume: ${formatCount(objects)} objects before, none of the volume now`;
    });
    const devices = configuredDevices(nodeIds);
    const mounts = (await mountsBelow(directory)).map(({ mountPoint }) => mountPoint);
    const journals = namesIn(join(node.stateDir, "journal"));
    const records = namesIn(join(node.runDir, "attachments"));
    const pods = nodes.flatMap(({ kubeletDir }) => namesIn(join(kubeletDir, "pods", claim.name)));
    const left = [...devices, ...mounts, ...journals, ...records, ...pods];
    if (left.length > 0) throw new Error(`left behind on the node: ${left.join(", ")}`);
    report.say("no configured nbd device, no mount, no journal, no attachment record, no target path");
    await report.step(async () => {
      await this.#throwAway(node);
      await this.#lab.controller.stop("SIGTERM");
      const running = this.#lab.processes.filter((process) => process.isRunning);
      if (running.length > 0) throw new Error(`still running: ${running.map(({ name }) => name).join(", ")}`);
      return "all processes have ended";
    });
  }

  async #mount(node: DemoNode): Promise<void> {
    const { claim } = this.#lab;
    await this.#report.step(async () => {
      await claim.controllerPublish(node);
      return `ControllerPublishVolume to ${node.id}`;
    });
    await this.#report.step(async () => {
      await claim.nodeStage();
      const staged = mountAt(await listMounts(), claim.stagingPath);
      if (staged === undefined) throw new Error("NodeStageVolume succeeded and nothing is mounted");
      return `NodeStageVolume: ${staged.source}, ${staged.fileSystem}`;
    });
    await this.#report.step(async () => {
      await claim.nodePublish();
      if (mountAt(await listMounts(), claim.targetPath) === undefined) {
        throw new Error("NodePublishVolume succeeded and nothing is mounted");
      }
      return "NodePublishVolume: mounted for the pod";
    });
  }

  async #unmount(): Promise<void> {
    const { claim } = this.#lab;
    await this.#report.step(async () => {
      await claim.nodeUnpublish();
      await claim.nodeUnstage();
      await claim.controllerUnpublish();
      return "NodeUnpublishVolume, NodeUnstageVolume, ControllerUnpublishVolume";
    });
  }

  async #compareTree(): Promise<void> {
    await this.#report.step(async () => {
      mustBeSame(await compareTree(this.#manifest, join(this.#lab.claim.targetPath, "tree"), this.#lab.check));
      const { files, bytes } = this.#manifest;
      return `compared ${formatCount(files)} files (${formatBytes(bytes)}) by SHA-256: all the same, none missing, none more`;
    });
  }

  async #throwAway(node: DemoNode): Promise<void> {
    this.#pastTraffic = addTraffic(this.#pastTraffic, await sumTraffic([node.server, node.node]));
    await node.stop();
    await rm(node.stateDir, { recursive: true, force: true });
    await rm(node.runDir, { recursive: true, force: true });
  }

  async #traffic(): Promise<StoreTraffic> {
    return addTraffic(this.#pastTraffic, await sumTraffic(this.#lab.processes));
  }

  async #sayTraffic(before: StoreTraffic): Promise<void> {
    const { requests, putBytes, getBytes } = addTraffic(await this.#traffic(), before, -1);
    const bytes: Record<string, string> = { put: formatBytes(putBytes), get: formatBytes(getBytes) };
    const parts = Object.entries(requests).map(([kind, count]) => {
      const size = bytes[kind] === undefined ? "" : ` (${bytes[kind]})`;
      return `${formatCount(count)} ${kind.toUpperCase()}${size}`;
    });
    this.#report.say(`requests to the store for this: ${parts.join(", ")}`);
  }

  /** Keys of volumes: everything below our prefix but the records of the nodes. */
  async #volumeKeys(): Promise<string[]> {
    return (await storedKeys(this.#lab.store)).filter((key) => !key.startsWith("v1/nodes/"));
  }
}

function mustBeSame(differences: readonly string[]): void {
  if (differences.length === 0) return;
  throw new Error(`${differences.length} differences:\n${differences.slice(0, 10).join("\n")}`);
}
