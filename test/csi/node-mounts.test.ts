/**
 * The node service on real devices, filesystems and mounts. A fresh service answers every call, so that nothing can
 * rest on what an earlier call remembered.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, writeSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { isKind } from "../../src/base/errors.ts";
import type { VolumeUsage } from "../../src/csi/messages.ts";
import { NodeService } from "../../src/csi/node.ts";
import { statusOfError } from "../../src/csi/status.ts";
import { type FileSystemType, makeFileSystem } from "../../src/host/filesystem.ts";
import {
  encodeFormatMarker,
  hasFormatMarker,
  RESERVED_BYTES,
  writeFormatMarker,
} from "../../src/host/format-marker.ts";
import { listMounts, mountAt, unmount } from "../../src/host/mount.ts";
import { runProgram } from "../../src/host/process.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { LoopDataPlane } from "./loop-data-plane.ts";
import { loopTests } from "./loop-tests.ts";
import { RecordingLog } from "./recording-log.ts";

const volumeId = mustVolumeId("vol-1");
const volumeBytes = 320 * 1024 ** 2;
const publishContext = { publication: "1", readOnly: "false", durability: "s3" };

let directory = "";
let kubelet = "";
let staging = "";
let dataPlane: LoopDataPlane;

async function setUp(): Promise<void> {
  directory = await mkdtemp(join(tmpdir(), "s3block-node-"));
  kubelet = join(directory, "kubelet");
  staging = join(kubelet, "staging");
  await mkdir(staging, { recursive: true });
  await mkdir(join(directory, "images"));
  dataPlane = new LoopDataPlane(join(directory, "images"), volumeBytes);
}

async function tearDown(): Promise<void> {
  const mounts = (await listMounts()).filter((mount) => mount.mountPoint.startsWith(`${directory}/`));
  for (const mount of mounts.toReversed()) await unmount(mount.mountPoint);
  await dataPlane.close();
  await rm(directory, { recursive: true });
}

type Method = "stage" | "unstage" | "publish" | "unpublish" | "getStats";

const mountAccess = (fsType: string, mode = "SINGLE_NODE_WRITER"): object => ({
  accessType: "mount",
  mount: { fsType, mountFlags: [], volumeMountGroup: "" },
  accessMode: { mode },
});
const blockAccess = { accessType: "block", block: {}, accessMode: { mode: "SINGLE_NODE_WRITER" } };

async function call(method: Method, fields: object = {}): Promise<object> {
  const log = new RecordingLog();
  const options = { nodeId: "n", maxVolumesPerNode: 8, kubeletDir: kubelet, dataPlane, clock: systemClock, log };
  const request = {
    volumeId,
    publishContext,
    stagingTargetPath: staging,
    targetPath: target("a"),
    volumeCapability: mountAccess("ext4"),
    secrets: {},
    volumeContext: {},
    readonly: false,
    volumePath: target("a"),
    ...fields,
  };
  return new NodeService(options)[method](request as never);
}

async function codeOf(method: Method, fields: object = {}): Promise<code> {
  try {
    await call(method, fields);
    return code.OK;
  } catch (error) {
    return statusOfError(error).code;
  }
}

function target(name: string): string {
  return join(kubelet, `target-${name}`);
}

async function devicePath(): Promise<string> {
  return (await dataPlane.getAttachment(volumeId))?.devicePath ?? "";
}

async function digest(path: string): Promise<string> {
  return createHash("sha256")
    .update(await readFile(path))
    .digest("hex");
}

function lifeOfAVolume(fsType: FileSystemType): void {
  test(`a volume with ${fsType} is made, filled, moved and keeps its files`, async () => {
    const volumeCapability = mountAccess(fsType);
    await call("stage", { volumeCapability });
    await call("stage", { volumeCapability });
    await call("publish", { volumeCapability });
    await call("publish", { volumeCapability });
    await writeFile(join(target("a"), "file"), "kept");
    const { usage } = (await call("getStats")) as { usage: VolumeUsage[] };
    assert.deepEqual(
      usage.map(({ unit }) => unit),
      ["BYTES", "INODES"],
    );
    assert.ok(Number(usage[0].total) > volumeBytes / 2 && Number(usage[0].available) <= Number(usage[0].total));
    assert.equal(await codeOf("unstage"), code.FAILED_PRECONDITION);
    for (let repeat = 0; repeat < 3; repeat += 1) await call("unpublish");
    assert.equal(existsSync(target("a")), false);
    for (let repeat = 0; repeat < 3; repeat += 1) await call("unstage");
    assert.equal(await dataPlane.getAttachment(volumeId), undefined);
    await call("stage", { volumeCapability });
    await call("publish", { volumeCapability, readonly: true, targetPath: target("b") });
    assert.equal(await readFile(join(target("b"), "file"), "utf8"), "kept");
    await assert.rejects(writeFile(join(target("b"), "other"), "x"), /EROFS/);
  });

  test(`${fsType} is told apart from a filesystem of another type`, async () => {
    await call("stage", { volumeCapability: mountAccess(fsType) });
    const other = mountAccess(fsType === "xfs" ? "ext4" : "xfs");
    assert.equal(await codeOf("stage", { volumeCapability: other }), code.ALREADY_EXISTS);
    await call("unstage");
    assert.equal(await codeOf("stage", { volumeCapability: other }), code.FAILED_PRECONDITION);
  });

  test(`an unfinished mkfs of ${fsType} is made again, whatever part of it reached the volume`, async () => {
    const whole = join(directory, "whole.img");
    const file = dataPlane.fileOf(volumeId);
    await makeImage(whole, fsType);
    for (const seed of [1, 2, 3, 4]) {
      await copySomeBlocks(whole, file, new SeededRandom(seed), { share: seed === 4 ? 1 : 0.5, litter: seed === 3 });
      await call("stage", { volumeCapability: mountAccess(fsType) });
      assert.equal(mountAt(await listMounts(), staging)?.fileSystem, fsType);
      const device = await devicePath();
      assert.equal(await hasFormatMarker(device, volumeBytes, volumeId), false);
      // The log of xfs takes 64 MiB; what was there before would take as much again.
      assert.ok((await stat(file)).blocks * 512 < 100 * 1024 ** 2, "what an earlier mkfs wrote was trimmed");
      await writeFile(join(staging, "file"), "kept");
      await unmount(staging);
      const checker = fsType === "xfs" ? ["xfs_repair", "-n"] : ["e2fsck", "-fn"];
      execFileSync(checker[0], [...checker.slice(1), device], { stdio: "pipe" });
      await call("unstage");
      await call("stage", { volumeCapability: mountAccess(fsType) });
      assert.equal(await readFile(join(staging, "file"), "utf8"), "kept");
      await call("unstage");
      await rm(file);
    }
  });

  test(`mkfs of ${fsType} leaves the marker alone and the filesystem ends before it`, async () => {
    await call("stage", { volumeCapability: blockAccess });
    const device = await devicePath();
    await writeFormatMarker(device, volumeBytes, volumeId);
    await makeFileSystem({ device, type: fsType, sizeBytes: volumeBytes - RESERVED_BYTES });
    assert.equal(await hasFormatMarker(device, volumeBytes, volumeId), true);
  });
}

/** A complete filesystem in a file of the volume's size, with the marker where it belongs. */
async function makeImage(path: string, type: FileSystemType): Promise<void> {
  await writeFile(path, "");
  await truncate(path, volumeBytes);
  const device = execFileSync("losetup", ["--find", "--show", path], { encoding: "utf8" }).trim();
  try {
    await makeFileSystem({ device, type, sizeBytes: volumeBytes - RESERVED_BYTES });
    await writeFormatMarker(device, volumeBytes, volumeId);
  } finally {
    execFileSync("losetup", ["--detach", device]);
  }
}

/** What a crash in mkfs leaves: the marker, which was flushed before, and any part of what came after. */
async function copySomeBlocks(
  from: string,
  to: string,
  random: SeededRandom,
  part: { share: number; litter: boolean },
): Promise<void> {
  const image = await readFile(from);
  const zeroes = Buffer.alloc(4096);
  await writeFile(to, "");
  await truncate(to, volumeBytes);
  const file = openSync(to, "r+");
  for (let offset = 0; offset < volumeBytes; offset += zeroes.length) {
    const block = image.subarray(offset, offset + zeroes.length);
    if (!block.equals(zeroes) && random.fraction() < part.share) writeSync(file, block, 0, block.length, offset);
  }
  // Worse than any mkfs leaves. mkfs is told that it finds zeroes, so they must be trimmed.
  if (part.litter) writeSync(file, random.bytes(64 * 1024 ** 2), 0, 64 * 1024 ** 2, 0);
  writeSync(file, encodeFormatMarker(volumeId), 0, zeroes.length, volumeBytes - RESERVED_BYTES);
  closeSync(file);
}

function definitions(): void {
  beforeEach(setUp);
  afterEach(tearDown);

  lifeOfAVolume("ext4");
  lifeOfAVolume("xfs");

  test("what may be a user's data is never formatted and not one byte of it changes", async () => {
    const file = dataPlane.fileOf(volumeId);
    const smallBytes = 8 * 1024 ** 2;
    const fillings: [string, (image: string) => Promise<void>][] = [
      ["random data", async (image) => writeFile(image, new SeededRandom(1).bytes(1024 * 1024))],
      ["zeroes that were written", async (image) => writeFile(image, Buffer.alloc(1024 * 1024))],
      [
        "one byte at the end",
        async (image) => writeFile(image, Buffer.concat([Buffer.alloc(smallBytes - 1), Buffer.of(1)])),
      ],
      [
        "another volume's marker",
        async (image) => {
          await writeFile(image, Buffer.alloc(smallBytes - RESERVED_BYTES));
          await writeFile(image, encodeFormatMarker("vol-2"), { flag: "a" });
        },
      ],
      [
        "a partition table",
        async (image) => {
          const table = Buffer.alloc(512);
          table.set([0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0], 446);
          table.writeUInt16LE(0xaa55, 510);
          await writeFile(image, table);
        },
      ],
    ];
    for (const [name, fill] of fillings) {
      await fill(file);
      await truncate(file, smallBytes);
      const before = await digest(file);
      for (const type of ["ext4", "xfs"]) {
        assert.equal(await codeOf("stage", { volumeCapability: mountAccess(type) }), code.FAILED_PRECONDITION, name);
      }
      await call("unstage");
      assert.equal(await digest(file), before, name);
      await rm(file);
    }
  });

  test("the marker is on the device before mkfs begins, and a volume too small for xfs still takes ext4", async () => {
    dataPlane.sizeBytes = 8 * 1024 ** 2;
    assert.equal(await codeOf("stage", { volumeCapability: mountAccess("xfs") }), code.INVALID_ARGUMENT);
    assert.equal(await hasFormatMarker(await devicePath(), dataPlane.sizeBytes, volumeId), true);
    await call("stage", { volumeCapability: mountAccess("ext4") });
    assert.equal(mountAt(await listMounts(), staging)?.fileSystem, "ext4");
  });

  test("a single writer has one target, several writers have several, and a target has one kind of access", async () => {
    await call("stage");
    await call("publish");
    assert.equal(await codeOf("publish", { targetPath: target("b") }), code.FAILED_PRECONDITION);
    const single = mountAccess("ext4", "SINGLE_NODE_SINGLE_WRITER");
    assert.equal(
      await codeOf("publish", { targetPath: target("b"), volumeCapability: single }),
      code.FAILED_PRECONDITION,
    );
    const several = mountAccess("ext4", "SINGLE_NODE_MULTI_WRITER");
    await call("publish", { targetPath: target("b"), volumeCapability: several });
    assert.equal(await codeOf("publish", { readonly: true }), code.ALREADY_EXISTS);
    await call("unpublish");
    await call("unpublish", { targetPath: target("b") });
  });

  test("publishing what is not staged is refused and leaves no target behind", async () => {
    assert.equal(await codeOf("publish"), code.FAILED_PRECONDITION);
    await call("stage");
    assert.equal(await codeOf("publish", { stagingTargetPath: "" }), code.FAILED_PRECONDITION);
    assert.equal(await codeOf("publish", { stagingTargetPath: join(kubelet, "elsewhere") }), code.FAILED_PRECONDITION);
    assert.equal(await codeOf("publish", { targetPath: join(kubelet, "no/parent") }), code.NOT_FOUND);
    assert.equal(await codeOf("publish", { targetPath: "/tmp/outside" }), code.INVALID_ARGUMENT);
    assert.equal(existsSync(target("a")), false);
  });

  test("a device is published as a file and given back", async () => {
    await call("stage", { volumeCapability: blockAccess });
    await call("publish", { volumeCapability: blockAccess });
    await call("publish", { volumeCapability: blockAccess });
    assert.equal((await stat(target("a"))).isBlockDevice(), true);
    assert.deepEqual(await call("getStats"), { usage: [{ unit: "BYTES", total: String(volumeBytes) }] });
    assert.equal(
      await codeOf("publish", { volumeCapability: blockAccess, readonly: true, targetPath: target("b") }),
      code.FAILED_PRECONDITION,
    );
    assert.equal(await codeOf("stage"), code.ALREADY_EXISTS);
    assert.equal(await codeOf("unstage"), code.FAILED_PRECONDITION);
    await call("unpublish");
    assert.equal(existsSync(target("a")), false);
    await call("unstage");
  });

  test("a volume that is published read-only is mounted so, and an empty one is refused", async () => {
    const readOnly = { publishContext: { ...publishContext, readOnly: "true" } };
    assert.equal(await codeOf("stage", readOnly), code.FAILED_PRECONDITION);
    await call("unstage");
    await call("stage");
    await call("unstage");
    for (let repeat = 0; repeat < 2; repeat += 1) await call("stage", readOnly);
    await call("publish");
    await assert.rejects(writeFile(join(target("a"), "file"), "x"), /EROFS/);
    await call("unpublish");
    await call("unstage");
  });

  test("a mount that an attachment which is gone left at the staging path is replaced", async () => {
    await call("stage");
    await writeFile(join(staging, "file"), "kept");
    execFileSync("sync");
    dataPlane.lose(volumeId);
    await call("stage");
    const mounts = (await listMounts()).filter(({ mountPoint }) => mountPoint === staging);
    assert.deepEqual(
      mounts.map(({ source }) => source),
      [await devicePath()],
    );
    assert.equal(await readFile(join(staging, "file"), "utf8"), "kept");
  });

  test("unpublishing and unstaging what never was succeeds, and never removes a file", async () => {
    for (const method of ["unpublish", "unstage"] as const) {
      assert.equal(
        await codeOf(method, {
          targetPath: join(kubelet, "no/such/path"),
          stagingTargetPath: join(kubelet, "no/such/path"),
        }),
        code.OK,
      );
    }
    await mkdir(target("a"));
    await writeFile(join(target("a"), "file"), "data");
    assert.equal(await codeOf("unpublish"), code.FAILED_PRECONDITION);
    assert.equal(await readFile(join(target("a"), "file"), "utf8"), "data");
  });

  test("a volume that failed is neither staged nor published until it was unstaged", async () => {
    await call("stage");
    dataPlane.failure = "fenced by another owner";
    assert.equal(await codeOf("stage"), code.FAILED_PRECONDITION);
    assert.equal(await codeOf("publish"), code.FAILED_PRECONDITION);
    await call("unstage");
    dataPlane.failure = "";
    await call("stage");
  });

  test("a volume in use in another mount namespace is not detached", async () => {
    await call("stage");
    const holder = await holdMountsElsewhere();
    try {
      assert.equal(await codeOf("unstage"), code.ABORTED);
      assert.notEqual(await dataPlane.getAttachment(volumeId), undefined);
    } finally {
      await holder.end();
    }
    await call("unstage");
  });

  test("a command that an earlier process left at work on the device is waited for", async () => {
    await call("stage", { volumeCapability: blockAccess });
    const device = await devicePath();
    const orphan = spawn("flock", ["--exclusive", "--no-fork", device, "sh", "-c", "echo ready; read line"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    await new Promise<void>((resolve) => orphan.stdout.once("data", () => resolve()));
    assert.equal(await codeOf("stage"), code.ABORTED);
    const ended = new Promise((resolve) => orphan.once("exit", resolve));
    orphan.stdin.end("\n");
    await ended;
    await call("stage");
  });

  test("a program that hangs in the kernel is given up, refused while it hangs, and usable afterwards", async () => {
    await call("stage");
    execFileSync("fsfreeze", ["--freeze", staging]);
    const touch = (): Promise<unknown> => runProgram("touch", [join(staging, "file")], { timeoutMs: 100 });
    try {
      for (let repeat = 0; repeat < 2; repeat += 1) await assert.rejects(touch(), (error) => isKind(error, "busy"));
    } finally {
      execFileSync("fsfreeze", ["--unfreeze", staging]);
    }
    for (;;) {
      if (
        await touch().then(
          () => true,
          () => false,
        )
      )
        break;
      await systemClock.sleep(20);
    }
    await call("unstage");
  });
}

/** A process with copies of all mounts in a namespace of its own. */
async function holdMountsElsewhere(): Promise<{ end(): Promise<void> }> {
  const child = spawn("unshare", ["--mount", "--propagation", "private", "sh", "-c", "echo ready; read line"], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  await new Promise<void>((resolve) => child.stdout.once("data", () => resolve()));
  return {
    end: () =>
      new Promise((resolve) => {
        child.once("exit", () => resolve());
        child.stdin.end("\n");
      }),
  };
}

await loopTests(
  { url: import.meta.url, name: "the node service on real devices and mounts", timeoutMs: 840_000 },
  definitions,
);
