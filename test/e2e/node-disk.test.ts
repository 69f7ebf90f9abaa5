/**
 * What the node's own disk means: with durability "local" it holds what was flushed through the death of the server and
 * of the whole machine, and metrics tell how far S3 is behind; when it is full, writers wait or an attach says so, and
 * nothing is lost. And the kernel's devices: more volumes than it has devices ready.
 */
import assert from "node:assert/strict";
import { open, readdir, readFile, rm, statfs, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { listMounts, mountAt, unmount } from "../../src/host/mount.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { Claim, insist, refusal } from "./claim.ts";
import { Cluster, type ClusterNode, useCluster } from "./cluster.ts";
import { dropCaches, run } from "./content.ts";

const stateBytes = 320 * 1024 ** 2;
let cluster: Cluster;
let node: ClusterNode;

/** A file of 3 MiB, flushed. */
async function writeFlushed(path: string): Promise<Buffer> {
  const bytes = new SeededRandom(99).bytes(3 * 1024 ** 2);
  await writeFile(path, bytes, { flush: true });
  return bytes;
}

/** The machine falls: no process says goodbye, the kernel forgets devices, mounts and /run; the disk stays. */
async function reboot(claim: Claim): Promise<void> {
  await Promise.all([node.server.stop("SIGKILL"), node.service.stop("SIGKILL")]);
  const kernel = await openKernelNbd({ clock: systemClock, log: nullLog });
  const backendIdentifier = `s3block:${node.id}:${claim.volumeId}`;
  const device = kernel.findByBackend(backendIdentifier);
  assert.ok(device !== undefined);
  const gone = kernel.disconnect({ index: device.index, backendIdentifier, force: true });
  for (const path of [claim.target, claim.staging]) await unmount(path);
  await gone;
  await rm(node.path("run"), { recursive: true });
  await Promise.all([node.server.start(), node.service.start()]);
}

/** Fills the disk of the state directory but for `freeBytes`; answers what undoes it. */
async function fillDisk(freeBytes: number): Promise<() => Promise<void>> {
  const filler = node.path("state", "filler");
  const { bavail, bsize } = await statfs(node.path("state"));
  await run("fallocate", ["-l", String(bavail * bsize - freeBytes), filler]);
  return () => rm(filler);
}

kernelTests({ url: import.meta.url, name: "the node's disk and devices", timeoutMs: 840_000 }, () => {
  useCluster(async () => {
    // Only in a guest of our own: the module may be in use elsewhere.
    if (process.env["S3BLOCK_GUEST"] === "1") {
      await run("rmmod", ["nbd"]);
      await run("modprobe", ["nbd", "max_part=0", "nbds_max=1"]);
    }
    cluster = await Cluster.start({ serverFlags: ["--upload-interval-ms=3600000", "--journal-size=256MiB"] });
    [node] = cluster.nodes;
    await node.server.stop("SIGTERM");
    await run("mount", ["-t", "tmpfs", "-o", `size=${stateBytes}`, "tmpfs", node.path("state")]);
    await node.server.start();
    return cluster;
  });
  const local = { durability: "local" };

  test(
    "durability local: what was flushed outlives server and machine, metrics tell what S3 lacks",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "local", parameters: local });
      await claim.bringUp();
      const bytes = await writeFlushed(`${claim.target}/file`);
      assert.ok((await node.metric("s3block_volume_dirty_bytes", claim.volumeId)) >= bytes.length);
      const behind = await node.metric("s3block_volume_behind_seconds", claim.volumeId);
      await sleep(20);
      assert.ok((await node.metric("s3block_volume_behind_seconds", claim.volumeId)) > behind);
      assert.deepEqual(await node.get("/healthz"), { status: 200, text: "ok\n" });

      await node.server.restart("SIGKILL");
      await dropCaches();
      assert.ok((await readFile(`${claim.target}/file`)).equals(bytes), "after the server's death");
      await reboot(claim);
      for (const step of claim.up().slice(1)) await insist(step);
      assert.ok((await readFile(`${claim.target}/file`)).equals(bytes), "after the machine's death");
      assert.ok((await node.metric("s3block_volume_dirty_bytes", claim.volumeId)) > 0, "S3 still lacks it");
      await claim.bringDown();
      await rm(node.path("state/journal"), { recursive: true });
      await node.server.restart("SIGTERM");
      await claim.bringUp();
      assert.ok((await readFile(`${claim.target}/file`)).equals(bytes), "from S3 alone");
      await claim.remove();
    },
  );

  test(
    "a journal that rots while its server is dead: the device answers errors, and goes on once it is attached anew",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "rotten", use: "block", sizeBytes: 2 ** 24, parameters: local });
      await claim.bringUp();
      const device = await open(claim.target, "r+");
      const blocks = Array.from({ length: 10 }, (_, block) => new SeededRandom(block + 1).bytes(4096));
      for (const [block, bytes] of blocks.entries()) {
        await device.write(bytes, 0, 4096, block * 4096);
        await device.sync();
      }
      await node.server.stop("SIGKILL");
      const directory = node.path("state/journal", claim.volumeId);
      const [name] = (await readdir(directory)).toSorted();
      const journal = await readFile(`${directory}/${name}`);
      journal[journal.indexOf(blocks[9]) + 100] ^= 1;
      await writeFile(`${directory}/${name}`, journal, { flag: "r+" });
      await node.server.start();
      await node.server.logged("the device answers errors from now on: unmount and detach it");
      await device.write(blocks[0], 0, 4096, 4096 * 20);
      await assert.rejects(device.sync(), { code: "EIO" });
      await device.close();
      await claim.bringDown();
      await claim.bringUp();
      await dropCaches();
      const found = (await readFile(claim.target)).subarray(0, 10 * 4096);
      assert.ok(found.subarray(0, 9 * 4096).equals(Buffer.concat(blocks.slice(0, 9))), "what stood before the damage");
      assert.ok(found.subarray(9 * 4096).every((byte) => byte === 0));
      await claim.remove();
    },
  );

  test(
    "no room for a journal: NodeStage says so, leaves nothing, and succeeds once there is room",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "no-room" });
      await claim.create();
      await claim.publish();
      const makeRoom = await fillDisk(1024 ** 2);
      const { code, text } = await refusal(() => claim.stage());
      assert.equal(code, "RESOURCE_EXHAUSTED");
      assert.match(text, /disk.*full|space/);
      assert.equal(mountAt(await listMounts(), claim.staging), undefined);
      assert.equal(await readFile("/sys/block/nbd0/size", "utf8"), "0\n", "no device is left");
      await makeRoom();
      await claim.bringUp();
      await claim.remove();
    },
  );

  test(
    "a disk that fills up under writes: they wait for S3 and go on, without an error",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "filling", parameters: local });
      await claim.bringUp();
      const makeRoom = await fillDisk(1024 ** 2);
      const file = `${claim.target}/file`;
      await run("dd", ["if=/dev/urandom", `of=${file}`, "bs=1M", "count=160", "conv=fsync"]);
      await node.server.logged("the journal's disk is full: writes wait until S3 has taken older ones");
      const sum = await run("sha256sum", [file]);
      const descriptors = await readdir(`/proc/${node.server.pid}/fd`);
      assert.ok(descriptors.length < 64, `${descriptors.length} descriptors are open`);
      await node.server.restart("SIGKILL");
      await dropCaches();
      assert.deepEqual(await run("sha256sum", [file]), sum, "a server starts on a full disk as well");
      await makeRoom();
      await claim.bringDown();
      await claim.bringUp();
      assert.deepEqual(await run("sha256sum", [file]), sum);
      await claim.remove();
    },
  );

  test("more volumes than the kernel has devices ready: it makes more of them", { timeout: 270_000 }, async () => {
    const claims = ["one", "two"].map((name) => new Claim(cluster, { name, use: "block", sizeBytes: 2 ** 20 }));
    for (const claim of claims) await claim.bringUp();
    for (const [index, claim] of claims.entries()) await writeFile(claim.target, `volume ${index}`, { flag: "r+" });
    await dropCaches();
    for (const [index, claim] of claims.entries()) {
      assert.match(await readFile(claim.target, "latin1"), new RegExp(`^volume ${index}\0`));
    }
    for (const claim of claims) await claim.remove();
  });
});
