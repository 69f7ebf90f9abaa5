/**
 * A volume over CSI with the real processes: filesystems and raw devices hold what was put on them, also after the
 * node has lost everything of its own; on a directory store and on a real S3 server.
 */
import assert from "node:assert/strict";
import { mkdtemp, open, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { type S3Server, startS3Server } from "../suites/s3-server.ts";
import { Claim, refusal } from "./claim.ts";
import { Cluster, useCluster } from "./cluster.ts";
import { fillTree, listTree, run } from "./content.ts";

const rawBytes = 6 * 1024 ** 2;

/** Objects of volumes and their logs, as files below a directory. */
async function storedVolumeObjects(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile()).map((entry) => `${entry.parentPath}/${entry.name}`);
  return paths.filter((path) => /\/v1\/(volumes|log)\//.test(path));
}

/** The first bytes of a device, or what is given written over them. */
async function rawContent(path: string, bytes?: Buffer): Promise<Buffer> {
  const file = await open(path, bytes === undefined ? "r" : "r+");
  try {
    if (bytes !== undefined) await file.write(bytes, 0, bytes.length, 0);
    const read = Buffer.alloc(rawBytes);
    await file.read(read, 0, rawBytes, 0);
    return read;
  } finally {
    await file.close();
  }
}

/** The whole life of volumes on a cluster, with the loss of the node's disk in the middle. */
async function keepEverything(cluster: Cluster, uses: readonly ("ext4" | "xfs")[], storeRoot: string): Promise<void> {
  const trees = uses.map((use) => new Claim(cluster, { name: `kept-${use}`, use }));
  const raw = new Claim(cluster, { name: "kept-block", use: "block" });
  const claims = [...trees, raw];
  const bytes = new SeededRandom(3).bytes(rawBytes);
  for (const claim of claims) await claim.bringUp();
  for (const claim of trees) await fillTree(claim.target);
  await rawContent(raw.target, bytes);
  const expected = await Promise.all(trees.map((claim) => listTree(claim.target)));
  assert.ok(expected[0].length > 50);
  for (const claim of claims) await claim.bringDown();

  await cluster.nodes[0].wipe();
  for (const claim of claims) await claim.bringUp();
  for (const [index, claim] of trees.entries()) assert.deepEqual(await listTree(claim.target), expected[index]);
  assert.ok((await rawContent(raw.target)).equals(bytes), "the device gives back what it was given");
  for (const claim of claims) await claim.remove();
  assert.deepEqual(await storedVolumeObjects(storeRoot), []);
}

function onDirectoryStore(): void {
  const started = useCluster(() => Cluster.start());

  test(
    "ext4, xfs and a raw device keep every byte when the node loses its disk, and leave nothing when deleted",
    { timeout: 360_000 },
    async () => {
      await keepEverything(started(), ["ext4", "xfs"], started().storeDirectory);
    },
  );
}

function onS3Server(): void {
  let s3: S3Server;
  let root = "";
  const started = useCluster(async () => {
    // The server keeps metadata in extended attributes of users, which a tmpfs has not.
    root = await mkdtemp(join(tmpdir(), "s3block-e2e-s3-"));
    await run("truncate", ["-s", "1G", `${root}.image`]);
    await run("mkfs.ext4", ["-q", `${root}.image`]);
    await run("modprobe", ["loop"]);
    await run("mount", ["-o", "loop", `${root}.image`, root]);
    s3 = await startS3Server({ root });
    const storeFlags = [`--store=s3://${s3.bucket}/some/prefix`, `--s3-endpoint=${s3.endpoint}`];
    const environment = { AWS_ACCESS_KEY_ID: s3.accessKeyId, AWS_SECRET_ACCESS_KEY: s3.secretAccessKey };
    return await Cluster.start({ storeFlags, environment });
  });
  after(async () => {
    await s3.stop();
    await run("umount", [root]);
    for (const path of [root, `${root}.image`]) await rm(path, { recursive: true });
  });

  test(
    "ext4 and a raw device keep every byte when the node loses its disk, and leave nothing when deleted",
    { timeout: 360_000 },
    async () => {
      await keepEverything(started(), ["ext4"], join(root, s3.bucket));
    },
  );

  test("a wrong secret at NodeStage is told and leaves no device; with the right one it succeeds", async () => {
    const claim = new Claim(started(), { name: "secret", use: "block" });
    await claim.create();
    await claim.publish();
    const secrets = { accessKeyId: s3.accessKeyId, secretAccessKey: "canary-wrong-secret" };
    const mistaken = new Claim(started(), { name: "secret", use: "block", secrets });
    Object.assign(mistaken, { volumeId: claim.volumeId, publishContext: claim.publishContext });
    const { code, text } = await refusal(() => mistaken.stage());
    assert.equal(code, "INVALID_ARGUMENT");
    assert.match(text, /signature does not match: check the access key and the secret/);
    assert.doesNotMatch(text + JSON.stringify(claim.node.server.lines), /canary/);
    assert.equal(await readFile("/sys/block/nbd0/size", "utf8"), "0\n");
    await claim.bringUp();
    await claim.remove();
  });

  test("while the store is away writers wait, and none of them sees an error", { timeout: 360_000 }, async () => {
    const claim = new Claim(started(), { name: "waiting" });
    await claim.bringUp();
    const { port } = s3;
    await s3.stop();
    const flushed = run("sh", [
      "-c",
      `dd if=/dev/urandom of=${claim.target}/file bs=64k count=64 conv=fsync 2>/dev/null`,
    ]);
    const { server } = started().nodes[0];
    await server.logged("store request is retried");
    s3 = await startS3Server({ root, port });
    await flushed;
    const sum = await run("sha256sum", [`${claim.target}/file`]);
    await claim.bringDown();
    await claim.bringUp();
    assert.deepEqual(await run("sha256sum", [`${claim.target}/file`]), sum);
    await claim.remove();
  });
}

kernelTests({ url: import.meta.url, name: "volumes hold what they are given", timeoutMs: 840_000 }, () => {
  describe("on a directory store", onDirectoryStore);
  describe("on an S3 server", onS3Server);
});
