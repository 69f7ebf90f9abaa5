/** The disk in memory: the contract, and that it loses exactly what a crash may lose. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Disk } from "../../src/base/disk.ts";
import { isKind, OperationError } from "../../src/base/errors.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { diskSuite } from "../suites/disk-suite.ts";

const SECTOR_BYTES = 512;

diskSuite("memory disk", async () => ({ disk: new MemoryDisk(), dispose: async () => {} }));

test("a crash keeps every synced sector and for the others either what was or what was to be", () => {
  const step = fc.record({ sector: fc.nat(19), count: fc.integer({ min: 1, max: 4 }), sync: fc.boolean() });
  const property = fc.asyncProperty(fc.array(step, { maxLength: 30 }), fc.nat(), async (steps, seed) => {
    const disk = new MemoryDisk();
    const file = await disk.open("a", { create: true });
    await disk.sync();
    const allowed = Array.from({ length: 24 }, () => new Set([0]));
    let value = 0;
    for (const { sector, count, sync } of steps) {
      value += 1;
      file.writeSync(Buffer.alloc(count * SECTOR_BYTES, value), sector * SECTOR_BYTES);
      for (let index = sector; index < sector + count; index += 1) allowed[index].add(value);
      if (!sync) continue;
      await file.sync();
      const now = Buffer.alloc(file.sizeBytes());
      file.readSync(now, 0);
      for (let index = 0; index * SECTOR_BYTES < now.length; index += 1) {
        allowed[index] = new Set([now[index * SECTOR_BYTES]]);
      }
    }
    const after = await disk.crash(new SeededRandom(seed)).open("a");
    const found = Buffer.alloc(after.sizeBytes());
    after.readSync(found, 0);
    for (let index = 0; index * SECTOR_BYTES < found.length; index += 1) {
      const sector = found.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
      assert.ok(allowed[index].has(sector[0]), `sector=${index}`);
      assert.ok(sector.every((byte) => byte === sector[0]));
    }
    for (let index = found.length / SECTOR_BYTES; index < 24; index += 1) assert.ok(allowed[index].has(0));
  });
  return fc.assert(property, { numRuns: 200 });
});

test("a crash can tear: some unsynced sectors stay and some go", async () => {
  const outcomes = new Set<string>();
  for (let seed = 0; seed < 50; seed += 1) {
    const disk = new MemoryDisk();
    const file = await disk.open("a", { create: true });
    await file.allocate(4 * SECTOR_BYTES);
    await disk.sync();
    file.writeSync(Buffer.alloc(4 * SECTOR_BYTES, 1), 0);
    const after = await disk.crash(new SeededRandom(seed)).open("a");
    const found = Buffer.alloc(4 * SECTOR_BYTES);
    after.readSync(found, 0);
    outcomes.add([0, 1, 2, 3].map((sector) => found[sector * SECTOR_BYTES]).join(""));
  }
  assert.ok(outcomes.has("0000") && outcomes.has("1111") && outcomes.size > 5, [...outcomes].join(" "));
});

test("one seed gives one outcome", async () => {
  const crashed = async (): Promise<string> => {
    const disk = new MemoryDisk();
    const file = await disk.open("a", { create: true });
    await disk.sync();
    file.writeSync(new SeededRandom(3).bytes(64 * SECTOR_BYTES), 0);
    const after = await disk.crash(new SeededRandom(9)).open("a");
    const found = Buffer.alloc(after.sizeBytes());
    after.readSync(found, 0);
    return found.toString("hex");
  };
  assert.equal(await crashed(), await crashed());
});

test("names not synced may be lost, synced ones never, and a rename never loses both names", async () => {
  const outcomes = new Set<string>();
  for (let seed = 0; seed < 60; seed += 1) {
    const disk = new MemoryDisk();
    await write(disk, "old", 1);
    await write(disk, "kept", 1);
    await disk.sync();
    await disk.rename("old", "new");
    await disk.open("fresh", { create: true });
    await disk.remove("kept");
    const names = await disk.crash(new SeededRandom(seed)).list();
    assert.equal(names.filter((name) => name === "old" || name === "new").length, 1);
    outcomes.add(names.join(" "));
  }
  assert.ok(outcomes.has("kept old") && outcomes.has("fresh new"), [...outcomes].join(", "));
});

test("a directory whose name could not be synced is durable once it was asked for again", async () => {
  const disk = new MemoryDisk();
  disk.setFault((call) => {
    if (call.operation === "sync-directory") throw new OperationError("unavailable", "the disk fails");
  });
  await assert.rejects(disk.directory("inner"));
  const next = disk.reopen();
  next.setFault(undefined);
  await next.directory("inner");
  const random = new SeededRandom(1);
  random.fraction = () => 0;
  assert.deepEqual(await next.crash(random).listDirectories(), ["inner"]);
});

test("the death of the process loses nothing and ends its files", async () => {
  const disk = new MemoryDisk();
  const inner = await disk.directory("inner");
  const file = await inner.open("a", { create: true });
  file.writeSync(Buffer.from("unsynced"), 0);
  const late = file.write(Buffer.from("LATE"), 0);
  const next = disk.reopen();
  await assert.rejects(late, (error) => isKind(error, "unavailable"));
  assert.throws(
    () => file.writeSync(Buffer.from("x"), 0),
    (error) => isKind(error, "unavailable"),
  );
  await assert.rejects(inner.open("b", { create: true }), (error) => isKind(error, "unavailable"));
  const again = await (await next.directory("inner")).open("a");
  const found = Buffer.alloc(8);
  again.readSync(found, 0);
  assert.equal(found.toString(), "unsynced");
});

test("a sync cut off by the death of the process leaves its bytes to the next sync", async () => {
  for (let seed = 0; seed < 20; seed += 1) {
    const disk = new MemoryDisk();
    const file = await disk.open("a", { create: true });
    await file.allocate(SECTOR_BYTES);
    await disk.sync();
    file.writeSync(Buffer.alloc(SECTOR_BYTES, 1), 0);
    const cutOff = file.sync();
    const next = disk.reopen();
    await assert.rejects(cutOff);
    await (await next.open("a")).sync();
    assert.equal(await firstByte(next.crash(new SeededRandom(seed)), "a"), 1);
  }
});

test("bytes written while a sync runs are not made durable by it, and those before are", async () => {
  const seen = new Set<number>();
  for (let seed = 0; seed < 40; seed += 1) {
    const disk = new MemoryDisk();
    const file = await disk.open("a", { create: true });
    await file.allocate(SECTOR_BYTES);
    await disk.sync();
    file.writeSync(Buffer.alloc(SECTOR_BYTES, 1), 0);
    const syncing = file.sync();
    file.writeSync(Buffer.alloc(SECTOR_BYTES, 2), 0);
    await syncing;
    seen.add(await firstByte(disk.crash(new SeededRandom(seed)), "a"));
  }
  assert.deepEqual(
    [...seen].toSorted((left, right) => left - right),
    [1, 2],
  );
});

test("after a failed sync a later one does not save the bytes unless they are written again", async () => {
  const seen = new Set<number>();
  for (const again of [false, true]) {
    for (let seed = 0; seed < 40; seed += 1) {
      const disk = new MemoryDisk();
      const file = await disk.open("a", { create: true });
      await file.allocate(SECTOR_BYTES);
      await disk.sync();
      file.writeSync(Buffer.alloc(SECTOR_BYTES, 1), 0);
      disk.setFault((call) => {
        if (call.operation === "sync") throw new OperationError("unavailable", "injected");
      });
      await assert.rejects(file.sync());
      disk.setFault(undefined);
      if (again) file.writeSync(Buffer.alloc(SECTOR_BYTES, 1), 0);
      await file.sync();
      const found = await firstByte(disk.crash(new SeededRandom(seed)), "a");
      if (again) assert.equal(found, 1);
      else seen.add(found);
    }
  }
  assert.deepEqual(
    [...seen].toSorted((left, right) => left - right),
    [0, 1],
  );
});

test("what a failed sync lost and a later write replaced is still not durable", async () => {
  const seen = new Set<number>();
  for (let seed = 0; seed < 40; seed += 1) {
    const disk = new MemoryDisk();
    const file = await disk.open("a", { create: true });
    await file.allocate(SECTOR_BYTES);
    await disk.sync();
    file.writeSync(Buffer.alloc(SECTOR_BYTES, 1), 0);
    disk.setFault((call) => {
      if (call.operation === "sync") throw new OperationError("unavailable", "injected");
    });
    await assert.rejects(file.sync());
    file.writeSync(Buffer.alloc(SECTOR_BYTES, 2), 0);
    seen.add(await firstByte(disk.crash(new SeededRandom(seed)), "a"));
  }
  assert.ok(seen.has(0) && seen.has(2), [...seen].join(" "));
});

test("a full disk says so and recovers when there is room again", async () => {
  const disk = new MemoryDisk({ capacityBytes: 256 * 1024 });
  const file = await disk.open("a", { create: true });
  await file.allocate(192 * 1024);
  await assert.rejects(file.allocate(1024 * 1024), (error) => isKind(error, "exhausted"));
  assert.throws(
    () => file.writeSync(Buffer.alloc(128 * 1024), 192 * 1024),
    (error) => isKind(error, "exhausted"),
  );
  assert.equal((await disk.space()).freeBytes, 64 * 1024);
  await disk.remove("a");
  await write(disk, "b", 200_000);
});

test("a fault hook sees the path and position of what it fails", async () => {
  const disk = new MemoryDisk();
  const file = await (await disk.directory("inner")).open("a", { create: true });
  const calls: string[] = [];
  disk.setFault((call) => {
    calls.push(`${call.operation} ${call.path} ${call.position} ${call.length}`);
    if (call.operation === "write") throw new OperationError("unavailable", "injected");
  });
  assert.throws(() => file.writeSync(Buffer.alloc(3), 5), { message: "injected" });
  assert.deepEqual(calls, ["write inner/a 5 3"]);
});

async function write(disk: Disk, name: string, sizeBytes: number): Promise<void> {
  const file = await disk.open(name, { create: true });
  await file.write(Buffer.alloc(sizeBytes, 1), 0);
  await file.sync();
  await file.close();
}

async function firstByte(disk: Disk, name: string): Promise<number> {
  const file = await disk.open(name);
  const target = Buffer.alloc(1);
  file.readSync(target, 0);
  return target[0];
}
