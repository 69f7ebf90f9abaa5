/**
 * The server with a real kernel: attach, file system, kill, restart, hand-over, detach, and a second node that takes the
 * volume away. In a guest where this machine's kernel has no nbd.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readdir, stat } from "node:fs/promises";
import { after, before, beforeEach, test } from "node:test";
import { promisify } from "node:util";
import { isKind } from "../../src/base/errors.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { ControlClient } from "../../src/attachment/control-client.ts";
import type { Attachment } from "../../src/attachment/data-plane.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import type { VolumeId } from "../../src/volume/identity.ts";
import { Playground } from "../cli/program.ts";
import type { ServerProcess } from "../cli/program.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { attachOptions } from "./fakes.ts";

const run = promisify(execFile);

interface FioJob {
  error: number;
  write: { total_ios: number; lat_ns: { max: number } };
  sync: { lat_ns: { max: number } };
}

let ground: Playground;
let server: ServerProcess;
let client: ControlClient;
let mountPoint: string;
let volumeId: VolumeId;
let count = 0;

async function makeVolume(sizeText = "256MiB"): Promise<void> {
  count += 1;
  volumeId = mustVolumeId(`vol-${count}`);
  const made = await ground.volume("create", volumeId, sizeText);
  assert.equal(made.code, 0, made.stderr);
}

function attach(changes: Parameters<typeof attachOptions>[0] = {}): Promise<Attachment> {
  return client.attach(attachOptions({ volumeId, publication: 0, ...changes }));
}

async function untilAttached(): Promise<Attachment> {
  for (;;) {
    const attachment = await client.getAttachment(volumeId).catch(() => undefined);
    if (attachment?.state === "attached") return attachment;
    await systemClock.sleep(50);
  }
}

/** A verified load on the mounted file system; answers the longest stall in seconds. */
async function load(seconds: number): Promise<{ job: FioJob; stallSeconds: number }> {
  const what = `--name=load --size=16m --rw=randwrite --bs=4k --ioengine=psync --fsync=8 --time_based --runtime=${seconds}`;
  const how = "--verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 --randseed=7 --output-format=json";
  const { stdout } = await run("fio", [`--filename=${mountPoint}/file`, ...what.split(" "), ...how.split(" ")]);
  const [job] = (JSON.parse(stdout.slice(stdout.indexOf("{"))) as { jobs: FioJob[] }).jobs;
  return { job, stallSeconds: Math.max(job.write.lat_ns.max, job.sync.lat_ns.max) / 1e9 };
}

kernelTests(
  { url: import.meta.url, name: "volumes attached to the kernel", timeoutMs: 840_000, memoryMib: 3072 },
  () => {
    before(async () => {
      ground = await Playground.make();
      mountPoint = ground.path("mount");
      await run("mkdir", ["-p", mountPoint]);
      server = await ground.serve();
      client = new ControlClient({ socketPath: ground.controlSocket });
    });
    beforeEach(() => makeVolume());
    after(async () => {
      client.close();
      await ground.remove();
    });

    test("an attached volume takes a file system, is freed by a detach, and comes back whole", async () => {
      const attached = await attach();
      assert.deepEqual([attached.state, attached.neverWritten, attached.sizeBytes], ["attached", true, 256 * 2 ** 20]);
      assert.equal((await attach()).devicePath, attached.devicePath);
      await run("mkfs.ext4", ["-q", attached.devicePath]);
      await run("mount", [attached.devicePath, mountPoint]);
      await run("cp", ["-a", "/usr/lib/python3", mountPoint]);
      await assert.rejects(
        client.detach(volumeId),
        (error) => isKind(error, "in-use") && /mounted at/.test(error.message),
      );
      await run("umount", [mountPoint]);
      await client.detach(volumeId);
      assert.deepEqual(await client.listAttachments(), []);
      const again = await attach({ readOnly: true });
      assert.equal(again.neverWritten, false);
      await run("mount", ["-o", "ro,noload", again.devicePath, mountPoint]);
      await run("diff", ["-r", "--no-dereference", "/usr/lib/python3", `${mountPoint}/python3`]);
      await run("umount", [mountPoint]);
      await client.detach(volumeId);
      assert.deepEqual(await readdir(ground.path("run", "attachments")), []);
      assert.deepEqual(await readdir(ground.path("state", "journal")), []);
    });

    test("a load goes on over SIGKILL and restart of the server, without an error", async () => {
      const { devicePath } = await attach();
      await run("mkfs.ext4", ["-q", devicePath]);
      await run("mount", [devicePath, mountPoint]);
      const loading = load(10);
      for (let round = 0; round < 2; round += 1) {
        await systemClock.sleep(2500);
        await server.stop("SIGKILL");
        server = await ground.serve();
      }
      const { job, stallSeconds } = await loading;
      process.stdout.write(`kill: ${job.write.total_ios} writes, longest stall ${stallSeconds.toFixed(2)} s\n`);
      assert.equal(job.error, 0);
      assert.equal((await untilAttached()).devicePath, devicePath);
      await run("umount", [mountPoint]);
      await run("fsck.ext4", ["-fn", devicePath]);
      await client.detach(volumeId);
    });

    test("a load goes on over an orderly restart of the server", async () => {
      await makeVolume("512MiB");
      const { devicePath } = await attach();
      await run("mkfs.xfs", ["-q", devicePath]);
      await run("mount", [devicePath, mountPoint]);
      const loading = load(8);
      for (let round = 0; round < 2; round += 1) {
        await systemClock.sleep(2000);
        assert.equal(await server.stop("SIGTERM"), 0);
        server = await ground.serve();
      }
      const { job, stallSeconds } = await loading;
      process.stdout.write(`hand-over: ${job.write.total_ios} writes, longest stall ${stallSeconds.toFixed(2)} s\n`);
      assert.equal(job.error, 0);
      await run("umount", [mountPoint]);
      await client.detach(volumeId);
    });

    test("a server that is slow, here frozen for seconds, keeps its connection", async () => {
      const { devicePath } = await attach();
      const write = run("dd", ["if=/dev/zero", `of=${devicePath}`, "bs=4k", "count=200", "oflag=direct"]);
      process.kill(server.pid, "SIGSTOP");
      await systemClock.sleep(5500);
      process.kill(server.pid, "SIGCONT");
      await write;
      const renewed = server.lines.filter((line) => line.operation === "reconnect" && line.volumeId === volumeId);
      assert.deepEqual(renewed, []);
      await client.detach(volumeId);
    });

    test("a volume of 512-byte blocks serves a device of 512-byte sectors", async () => {
      const id = "small-blocks";
      assert.equal((await ground.volume("create", id, "64MiB", "--block-size=512")).code, 0);
      volumeId = mustVolumeId(id);
      const { devicePath, blockSizeBytes } = await attach();
      assert.equal(blockSizeBytes, 512);
      await run("dd", ["if=/dev/urandom", `of=${ground.path("odd")}`, "bs=512", "count=333"]);
      await run("dd", [`if=${ground.path("odd")}`, `of=${devicePath}`, "bs=512", "seek=7", "oflag=direct"]);
      await run("dd", [
        `if=${devicePath}`,
        `of=${ground.path("back")}`,
        "bs=512",
        "skip=7",
        "count=333",
        "iflag=direct",
      ]);
      assert.ok((await ground.read("odd")).equals(await ground.read("back")));
      await client.detach(volumeId);
    });

    test("a node that lost its volume while its server was down answers errors until it is detached", async () => {
      const { devicePath } = await attach();
      await run("dd", ["if=/dev/zero", `of=${devicePath}`, "bs=4k", "count=1", "oflag=direct"]);
      await server.stop("SIGKILL");
      const flags = [
        "--node-id=node-b",
        `--run-dir=${ground.path("run-b")}`,
        `--control-socket=${ground.path("run-b/c.sock")}`,
      ];
      const own = ground.serverFlags("state-b").filter((flag) => !/node-id|run-dir|control-socket/.test(flag));
      const other = await ground.serve([...own, ...flags]);
      const otherClient = new ControlClient({ socketPath: ground.path("run-b/c.sock") });
      const taken = await otherClient.attach(attachOptions({ volumeId, publication: 0 }));
      assert.notEqual(taken.devicePath, devicePath);
      await otherClient.detach(volumeId);
      otherClient.close();
      assert.equal(await other.stop("SIGTERM"), 0);
      server = await ground.serve();
      for (;;) {
        const attachment = await client.getAttachment(volumeId);
        if (attachment?.state === "failed") break;
        assert.equal(attachment?.state, "opening");
        await systemClock.sleep(50);
      }
      await assert.rejects(run("dd", [`if=${devicePath}`, "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]));
      await client.detach(volumeId);
      assert.equal((await attach()).state, "attached");
      await client.detach(volumeId);
    });

    test("two nodes on one volume: the fenced one answers errors, the other goes on", async () => {
      const { devicePath } = await attach();
      const flags = [
        "--node-id=node-b",
        `--run-dir=${ground.path("run-b")}`,
        `--control-socket=${ground.path("run-b/c.sock")}`,
      ];
      const own = ground.serverFlags("state-b").filter((flag) => !/node-id|run-dir|control-socket|listen/.test(flag));
      const other = await ground.serve([...own, ...flags]);
      const otherClient = new ControlClient({ socketPath: ground.path("run-b/c.sock") });
      const taken = await otherClient.attach(attachOptions({ volumeId, publication: 0 }));
      const write = (path: string) =>
        run("dd", ["if=/dev/zero", `of=${path}`, "bs=4k", "count=1", "conv=fsync", "oflag=direct"]);
      await assert.rejects(write(devicePath));
      assert.equal((await client.getAttachment(volumeId))?.state, "failed");
      await write(taken.devicePath);
      await client.detach(volumeId);
      await otherClient.detach(volumeId);
      otherClient.close();
      assert.equal(await other.stop("SIGTERM"), 0);
    });

    test("a 16 TiB volume attaches in a second", async () => {
      await makeVolume("16TiB");
      const startMs = systemClock.monotonicMs();
      const { devicePath, sizeBytes } = await attach();
      process.stdout.write(`attach of 16 TiB: ${Math.round(systemClock.monotonicMs() - startMs)} ms\n`);
      assert.equal(sizeBytes, 16 * 2 ** 40);
      assert.ok((await stat(devicePath)).isBlockDevice());
      await client.detach(volumeId);
    });
  },
);
