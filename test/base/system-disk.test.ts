/** The machine's disk: the contract, and what only a real directory shows. */
import assert from "node:assert/strict";
import { promises as fs } from "node:fs";
import { execFile } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { isKind } from "../../src/base/errors.ts";
import { openSystemDisk } from "../../src/base/system-disk.ts";
import { loadLibc } from "../../src/nbd/kernel/libc.ts";
import { diskSuite } from "../suites/disk-suite.ts";

const { readInMemory } = await loadLibc();

async function temporary(): Promise<{ path: string; dispose: () => Promise<void> }> {
  const path = await fs.mkdtemp(join(tmpdir(), "s3block-disk-"));
  return { path, dispose: () => fs.rm(path, { recursive: true, force: true }) };
}

diskSuite("system disk", async () => {
  const { path, dispose } = await temporary();
  return { disk: await openSystemDisk(join(path, "made", "on the way")), dispose };
});

diskSuite("system disk that tells what is in memory", async () => {
  const { path, dispose } = await temporary();
  return { disk: await openSystemDisk(path, readInMemory), dispose };
});

test("what the page cache has given up is not read at once, and is after it was waited for", async () => {
  const { path, dispose } = await temporary();
  try {
    const disk = await (await openSystemDisk(path, readInMemory)).directory("below");
    const file = await disk.open("a", { create: true });
    const bytes = Buffer.alloc(1_000_000, "0123456789abcdef!");
    file.writeSync(bytes, 0);
    await file.sync();
    const target = Buffer.alloc(20_000);
    assert.equal(file.readNow(target, 500_001), true);
    assert.ok(target.equals(bytes.subarray(500_001, 520_001)));
    // Has the kernel drop the file's clean pages; it keeps those that somebody is busy with at the moment.
    let isThere: boolean | undefined = true;
    for (let asked = 0; asked < 100 && isThere === true; asked += 1) {
      await promisify(execFile)("dd", [`if=${join(path, "below", "a")}`, "iflag=nocache", "count=0", "status=none"]);
      isThere = file.readNow(target, 500_001);
    }
    assert.equal(isThere, false);
    target.fill(0);
    await file.read(target, 500_001);
    assert.ok(target.equals(bytes.subarray(500_001, 520_001)));
    assert.equal(file.readNow(target, 500_001), true);
    await file.close();
  } finally {
    await dispose();
  }
});

test("a file system that cannot tell what is in memory is asked once for each file", async () => {
  const { path, dispose } = await temporary();
  try {
    let asked = 0;
    const disk = await openSystemDisk(path, () => {
      asked += 1;
      throw new Error("EOPNOTSUPP");
    });
    const file = await disk.open("a", { create: true });
    file.writeSync(Buffer.from("abc"), 0);
    for (let turn = 0; turn < 3; turn += 1) assert.equal(file.readNow(Buffer.alloc(3), 0), undefined);
    assert.equal(asked, 1);
    await file.close();
  } finally {
    await dispose();
  }
});

test("files are readable by their owner alone, and allocated ones hold real blocks", async () => {
  const { path, dispose } = await temporary();
  try {
    const disk = await openSystemDisk(path);
    const file = await disk.open("a", { create: true });
    await file.allocate(3_000_000);
    const facts = await fs.stat(join(path, "a"));
    assert.equal(facts.mode & 0o777, 0o600);
    assert.ok(facts.blocks * 512 >= 3_000_000);
    await file.close();
  } finally {
    await dispose();
  }
});

test("a close that comes while a write runs waits for it", async () => {
  const { path, dispose } = await temporary();
  try {
    const disk = await openSystemDisk(path);
    const file = await disk.open("a", { create: true });
    const order: string[] = [];
    const writing = [0, 1, 2].map((place) =>
      file.write(Buffer.alloc(8_000_000, 1), place * 8_000_000).then(() => order.push("written")),
    );
    await file.close().then(() => order.push("closed"));
    await Promise.all(writing);
    assert.deepEqual(order, ["written", "written", "written", "closed"]);
    assert.equal((await fs.stat(join(path, "a"))).size, 24_000_000);
  } finally {
    await dispose();
  }
});

test("a full device is told apart from a broken one", { skip: await lacksFullDevice() }, async () => {
  const { path, dispose } = await temporary();
  try {
    await fs.symlink("/dev/full", join(path, "full"));
    const disk = await openSystemDisk(path);
    const file = await disk.open("full");
    assert.throws(
      () => file.writeSync(Buffer.alloc(1), 0),
      (error) => isKind(error, "exhausted") && error.message.includes("free space"),
    );
    await assert.rejects(file.write(Buffer.alloc(1), 0), (error) => isKind(error, "exhausted"));
    await file.close();
    await fs.mkdir(join(path, "directory"));
    await assert.rejects(disk.open("directory"), (error) => isKind(error, "unavailable"));
  } finally {
    await dispose();
  }
});

async function lacksFullDevice(): Promise<string | false> {
  return await fs.access("/dev/full").then(
    () => false,
    () => "this machine has no /dev/full",
  );
}
