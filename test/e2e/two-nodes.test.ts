/**
 * Two nodes and one volume. The controller gives it to one at a time; where it is taken away by force from a node that
 * still runs, the engine's fence decides: the former owner's late writes are refused, its device answers errors from
 * then on, can be unmounted and detached, and the new owner sees nothing of it.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { open, readFile } from "node:fs/promises";
import { test } from "node:test";
import { listMounts, mountAt } from "../../src/host/mount.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { listAll } from "../../src/store/object-store.ts";
import type { Epoch } from "../../src/volume/identity.ts";
import { parseKey } from "../../src/volume/keys.ts";
import { LogReader } from "../../src/volume/log-reader.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { Claim, insist, refusal } from "./claim.ts";
import { Cluster, type ClusterNode, useCluster } from "./cluster.ts";

let cluster: Cluster;
let first: ClusterNode;
let second: ClusterNode;

/** Writes a file through to the store, or rejects with the kernel's error. */
async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, "w");
  try {
    await file.write(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Types of the log objects of the one volume that is there, by epoch, in order of sequence. */
async function readLog(): Promise<Map<Epoch, string[]>> {
  const store = new DirectoryStore({ root: cluster.storeDirectory });
  const log = new Map<Epoch, string[]>();
  for await (const { key } of listAll(store, "v1/log/")) {
    const parsed = parseKey(key);
    assert.ok(parsed?.kind === "segment", key);
    const head = await new LogReader(store, parsed.uid).head(parsed.epoch, parsed.sequence);
    const types = log.get(parsed.epoch) ?? [];
    types[parsed.sequence] = head?.type ?? "gone";
    log.set(parsed.epoch, types);
  }
  return log;
}

/** Every epoch but the newest ends with FENCE, without a gap before it and with nothing behind it. */
async function mustBeFenced(owners: number): Promise<void> {
  const log = await readLog();
  const newest = Math.max(...log.keys());
  assert.equal(newest, owners, "each owner has an epoch of its own");
  for (const [epoch, types] of log) {
    const text = Array.from(types, (type) => type ?? "gap").join(" ");
    assert.match(text, epoch === newest ? /^start( data)*$/ : /^start( data)* fence$/, `epoch ${epoch}`);
  }
}

/** Takes the volume from the first node, which knows nothing of it, and gives it to the second. */
async function takeOver(claim: Claim): Promise<void> {
  await insist(() => claim.unpublish());
  claim.node = second;
  await claim.bringUp();
}

/** Undoes the mounts of a node that has lost the volume: nothing of it stays there. */
async function cleanUp(claim: Claim, node: ClusterNode): Promise<void> {
  claim.node = node;
  const device = mountAt(await listMounts(), claim.staging)?.source ?? "";
  assert.match(device, /^\/dev\/nbd\d+$/);
  await insist(() => claim.unpublishFromPod());
  await insist(() => claim.unstage());
  assert.equal(existsSync(claim.target), false);
  assert.equal(mountAt(await listMounts(), claim.staging), undefined);
  assert.equal(await readFile(`/sys/block/${device.slice(5)}/size`, "utf8"), "0\n", "the device is free");
  assert.doesNotMatch((await node.get("/metrics")).text, new RegExp(claim.volumeId), "the volume is closed");
}

/** Writes on what may not be written any more; answers the error's code. */
function writeLate(path: string): Promise<string> {
  return writeSynced(path, "late words of the first").then(
    () => "acknowledged",
    (error: unknown) => (error as NodeJS.ErrnoException).code ?? "",
  );
}

kernelTests({ url: import.meta.url, name: "two nodes race for one volume", timeoutMs: 840_000 }, () => {
  useCluster(async () => {
    cluster = await Cluster.start({ nodes: ["e2e-a", "e2e-b"] });
    [first, second] = cluster.nodes;
    return cluster;
  });

  test(
    "while a volume is published to one node the other gets it neither from the controller nor by staging it",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "held" });
      await claim.bringUp();
      await writeSynced(`${claim.target}/file`, "held");
      claim.node = second;
      const published = await refusal(() => claim.publish());
      assert.equal(published.code, "FAILED_PRECONDITION");
      assert.match(published.text, /e2e-a/);
      const staged = await refusal(() => claim.stage());
      assert.equal(staged.code, "FAILED_PRECONDITION");
      assert.match(staged.text, /not published to this node any more.*publishedTo=e2e-a/);
      assert.equal(mountAt(await listMounts(), claim.staging), undefined);
      claim.node = first;
      await writeSynced(`${claim.target}/file`, "still held");
      await claim.remove();
    },
  );

  test(
    "a node that loses its volume while it runs answers errors, can be cleaned, and may own it again later",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "taken" });
      await claim.bringUp();
      const firstTarget = claim.target;
      await writeSynced(`${firstTarget}/file`, "flushed by the first");
      await takeOver(claim);
      assert.equal(await readFile(`${claim.target}/file`, "utf8"), "flushed by the first");
      await writeSynced(`${claim.target}/file`, "written by the second");

      assert.equal(await writeLate(`${firstTarget}/late`), "EIO");
      const failed = await first.server.logged("the volume has failed: all its I/O answers an error from now on");
      assert.equal(failed["kind"], "fenced");
      assert.equal(await first.metric("s3block_volume_failed", claim.volumeId), 1);
      await mustBeFenced(2);
      await cleanUp(claim, first);

      claim.node = second;
      assert.equal(await readFile(`${claim.target}/file`, "utf8"), "written by the second");
      assert.equal(existsSync(`${claim.target}/late`), false);
      await claim.bringDown();
      claim.node = first;
      await claim.bringUp();
      assert.equal(await readFile(`${claim.target}/file`, "utf8"), "written by the second");
      await mustBeFenced(3);
      await claim.remove();
    },
  );

  test(
    "a frozen owner that wakes after a take-over gets no write into the store and no flush acknowledged",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "frozen" });
      await claim.bringUp();
      const firstTarget = claim.target;
      await writeSynced(`${firstTarget}/file`, "flushed by the first");
      first.server.signal("SIGSTOP");
      const late = writeLate(`${firstTarget}/file`);
      await takeOver(claim);
      await writeSynced(`${claim.target}/file`, "written by the second");
      first.server.signal("SIGCONT");
      assert.equal(await late, "EIO");
      await mustBeFenced(2);
      await cleanUp(claim, first);
      claim.node = second;
      await claim.bringDown();
      await claim.bringUp();
      assert.equal(await readFile(`${claim.target}/file`, "utf8"), "written by the second");
      await claim.remove();
    },
  );

  test(
    "a fenced owner that was restarted serves errors on its device until it is unstaged",
    { timeout: 270_000 },
    async () => {
      const claim = new Claim(cluster, { name: "restarted" });
      await claim.bringUp();
      const firstTarget = claim.target;
      await writeSynced(`${firstTarget}/file`, "flushed by the first");
      await first.server.stop("SIGKILL");
      const late = writeLate(`${firstTarget}/late`);
      await takeOver(claim);
      await first.server.start();
      assert.equal(await late, "EIO");
      await first.server.logged("the device answers errors from now on: unmount and detach it");
      await mustBeFenced(2);
      await cleanUp(claim, first);
      claim.node = second;
      assert.equal(await readFile(`${claim.target}/file`, "utf8"), "flushed by the first");
      await claim.remove();
    },
  );
});
