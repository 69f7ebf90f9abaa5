/** The contract of base/disk.ts as tests, run on every implementation. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Disk } from "../../src/base/disk.ts";
import { isKind } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";

export interface DiskUnderTest {
  disk: Disk;
  dispose(): Promise<void>;
}

export function diskSuite(label: string, make: () => Promise<DiskUnderTest>): void {
  const check = (name: string, run: (disk: Disk) => Promise<void>): void => {
    test(`${label}: ${name}`, async () => {
      const underTest = await make();
      try {
        await run(underTest.disk);
      } finally {
        await underTest.dispose();
      }
    });
  };
  nameTests(check);
  byteTests(check);
}

type Check = (name: string, run: (disk: Disk) => Promise<void>) => void;

function nameTests(check: Check): void {
  check("a file that is missing is not found, and is made only where that was asked for", async (disk) => {
    await assert.rejects(disk.open("a"), (error) => isKind(error, "not-found"));
    assert.deepEqual(await disk.list(), []);
    const file = await disk.open("a", { create: true });
    assert.equal(file.name, "a");
    assert.equal(file.sizeBytes(), 0);
    await file.close();
    assert.deepEqual(await disk.list(), ["a"]);
  });

  check("files and directories are listed apart and sorted", async (disk) => {
    for (const name of ["c", "a", "b"]) await (await disk.open(name, { create: true })).close();
    await disk.directory("z");
    await disk.directory("y");
    assert.deepEqual(await disk.list(), ["a", "b", "c"]);
    assert.deepEqual(await disk.listDirectories(), ["y", "z"]);
  });

  check("rename replaces, and a missing source is not found", async (disk) => {
    await put(disk, "old", "1");
    await put(disk, "new", "2");
    await disk.rename("new", "old");
    assert.deepEqual(await disk.list(), ["old"]);
    assert.equal(await take(disk, "old"), "2");
    await assert.rejects(disk.rename("new", "other"), (error) => isKind(error, "not-found"));
  });

  check("remove takes a file away and a missing one is no error", async (disk) => {
    await put(disk, "a", "1");
    await disk.remove("a");
    await disk.remove("a");
    assert.deepEqual(await disk.list(), []);
  });

  check("a subdirectory is a disk of its own and goes with all it holds", async (disk) => {
    const inner = await disk.directory("inner");
    await put(inner, "a", "1");
    await put(await inner.directory("deep"), "b", "2");
    assert.deepEqual(await disk.list(), []);
    assert.equal(await take(await disk.directory("inner"), "a"), "1");
    await disk.removeDirectory("inner");
    await disk.removeDirectory("inner");
    assert.deepEqual(await disk.listDirectories(), []);
    assert.deepEqual(await (await disk.directory("inner")).list(), []);
  });

  check("names that are no plain file names are a bug", async (disk) => {
    for (const name of ["", ".", "..", "a/b", "/a"]) {
      await assert.rejects(disk.open(name, { create: true }), { name: "AssertionError" }, `name "${name}"`);
    }
  });

  check("the free space is known and the directory can be synced", async (disk) => {
    await disk.sync();
    const { freeBytes, totalBytes } = await disk.space();
    assert.ok(freeBytes > 0 && freeBytes <= totalBytes);
  });
}

function byteTests(check: Check): void {
  check("bytes written by any call are read back by any call", async (disk) => {
    const file = await disk.open("a", { create: true });
    const random = new SeededRandom(1);
    const model = Buffer.alloc(200_000);
    file.writeSync(model, 0);
    for (let round = 0; round < 200; round += 1) {
      const position = random.below(190_000);
      const bytes = random.bytes(random.below(10_000));
      if (round % 2 === 0) file.writeSync(bytes, position);
      else await file.write(bytes, position);
      bytes.copy(model, position);
      const target = Buffer.alloc(random.below(100_000));
      const from = random.below(100_000);
      if (round % 4 < 2) file.readSync(target, from);
      else await file.read(target, from);
      assert.ok(target.equals(model.subarray(from, from + target.length)), `round=${round}`);
    }
    await file.sync();
    await file.close();
    const again = await disk.open("a", { create: true });
    const whole = Buffer.alloc(model.length);
    assert.equal(again.sizeBytes(), model.length);
    again.readSync(whole, 0);
    assert.ok(whole.equals(model));
    await again.close();
  });

  check("a write beyond the end leaves zeroes between", async (disk) => {
    const file = await disk.open("a", { create: true });
    file.writeSync(Buffer.from("x"), 100_000);
    assert.equal(file.sizeBytes(), 100_001);
    const target = Buffer.alloc(100_001, 1);
    file.readSync(target, 0);
    assert.ok(target.subarray(0, 100_000).equals(Buffer.alloc(100_000)));
    assert.equal(target[100_000], "x".charCodeAt(0));
    await file.close();
  });

  check("a read beyond the end is corrupt, never short", async (disk) => {
    const file = await disk.open("a", { create: true });
    file.writeSync(Buffer.alloc(10), 0);
    assert.throws(
      () => file.readSync(Buffer.alloc(11), 0),
      (error) => isKind(error, "corrupt"),
    );
    await assert.rejects(file.read(Buffer.alloc(2), 9), (error) => isKind(error, "corrupt"));
    await assert.rejects(file.read(Buffer.alloc(1), 1000), (error) => isKind(error, "corrupt"));
    await file.read(Buffer.alloc(0), 10);
    await file.close();
  });

  check("a read that must not wait brings right bytes or none, and is never short", async (disk) => {
    const file = await disk.open("a", { create: true });
    const bytes = new SeededRandom(2).bytes(20_000);
    file.writeSync(bytes, 0);
    const memory = Buffer.alloc(30_000, 7);
    for (const [from, length] of [
      [0, 20_000],
      [4095, 4112],
      [19_999, 1],
      [3, 0],
    ] as const) {
      const isThere = file.readNow(memory.subarray(100, 100 + length), from);
      assert.notEqual(isThere, false, "what was just written is in memory");
      if (isThere === true) assert.ok(memory.subarray(100, 100 + length).equals(bytes.subarray(from, from + length)));
      assert.equal(memory[99], 7);
    }
    for (const from of [19_999, 20_000, 1_000_000]) assert.notEqual(file.readNow(memory.subarray(0, 2), from), true);
    await file.close();
    assert.throws(() => file.readNow(memory, 0), { name: "AssertionError" });
  });

  check("allocate extends with zeroes, keeps what is there and never shrinks", async (disk) => {
    const file = await disk.open("a", { create: true });
    file.writeSync(Buffer.from("abc"), 0);
    await file.allocate(2_500_000);
    assert.equal(file.sizeBytes(), 2_500_000);
    const target = Buffer.alloc(2_500_000, 1);
    file.readSync(target, 0);
    assert.equal(target.toString("latin1", 0, 3), "abc");
    assert.ok(target.subarray(3).equals(Buffer.alloc(2_499_997)));
    await file.allocate(10);
    assert.equal(file.sizeBytes(), 2_500_000);
    await file.close();
  });

  check("an open file survives its renaming and removal", async (disk) => {
    const file = await disk.open("a", { create: true });
    file.writeSync(Buffer.from("1"), 0);
    await disk.rename("a", "b");
    file.writeSync(Buffer.from("2"), 1);
    assert.equal(await take(disk, "b"), "12");
    await disk.remove("b");
    const target = Buffer.alloc(2);
    file.readSync(target, 0);
    assert.equal(target.toString(), "12");
    await file.close();
  });

  check("close waits for what runs, is idempotent, and use after it is a bug", async (disk) => {
    const file = await disk.open("a", { create: true });
    const writing = file.write(Buffer.alloc(1_000_000, 7), 0);
    const syncing = file.sync();
    await Promise.all([writing, syncing]);
    await Promise.all([file.close(), file.close()]);
    assert.throws(() => file.writeSync(Buffer.alloc(1), 0), { name: "AssertionError" });
    await assert.rejects(file.sync(), { name: "AssertionError" });
  });
}

async function put(disk: Disk, name: string, text: string): Promise<void> {
  const file = await disk.open(name, { create: true });
  await file.write(Buffer.from(text), 0);
  await file.sync();
  await file.close();
}

async function take(disk: Disk, name: string): Promise<string> {
  const file = await disk.open(name);
  const target = Buffer.alloc(file.sizeBytes());
  await file.read(target, 0);
  await file.close();
  return target.toString();
}
