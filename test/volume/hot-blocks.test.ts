/** Blocks in memory: right bytes or none, and memory that uploads get back at once. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { HotBlocks } from "../../src/volume/hot-blocks.ts";
import { BLOCK_BYTES } from "../../src/volume/identity.ts";
import { UploadBudget } from "../../src/volume/upload-budget.ts";

const MIB = 1024 * 1024;
const largeBytes = 2 * MIB + 100;
const placesOfRegion = 512;

/** What the block at `unit` of `object` holds. */
function content(object: number, unit: number): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES, object ^ unit);
  block.writeDoubleLE(object, 8);
  block.writeDoubleLE(unit, BLOCK_BYTES - 8);
  return block;
}

/** Reads as the read path does: from memory, else "from the disk", offering what came from there. */
function read(hot: HotBlocks, object: number, unit: number): boolean {
  const target = Buffer.alloc(BLOCK_BYTES + 20, 0xee);
  const isHit = hot.read(object, unit, target, 10);
  if (!isHit) {
    content(object, unit).copy(target, 10);
    hot.offer(object, unit, target, 10);
  }
  assert.ok(target.subarray(10, 10 + BLOCK_BYTES).equals(content(object, unit)), `block ${object}/${unit}`);
  assert.equal(target.readUInt16LE(8), 0xeeee);
  assert.equal(target.readUInt16LE(10 + BLOCK_BYTES), 0xeeee);
  return isHit;
}

test("blocks read often are answered from memory, with the right bytes", () => {
  const hot = new HotBlocks(new UploadBudget(10 * MIB, largeBytes));
  const random = new SeededRandom(1);
  for (let count = 0; count < 20_000; count += 1) read(hot, 1 + random.below(3), random.below(200) * 257);
  const before = hot.hits;
  for (let count = 0; count < 1000; count += 1) read(hot, 1 + random.below(3), random.below(200) * 257);
  assert.ok(hot.hits - before > 900, `${hot.hits - before} of 1000`);
});

test("objects and places at the ends of their ranges are told apart", () => {
  const hot = new HotBlocks(new UploadBudget(10 * MIB, largeBytes));
  const known: [number, number][] = [1, 2, 2 ** 30, 2 ** 30 + 1].flatMap((object) =>
    [0, 1, 2 ** 21, 2 ** 22 - 1].map((unit): [number, number] => [object, unit]),
  );
  for (let round = 0; round < 200; round += 1) for (const [object, unit] of known) read(hot, object, unit);
  for (const [object, unit] of known) assert.ok(read(hot, object, unit), `${object}/${unit}`);
});

test("a few hot blocks stay while many others pass once", () => {
  const hot = new HotBlocks(new UploadBudget(10 * MIB, largeBytes));
  let hits = 0;
  for (let count = 0; count < 40_000; count += 1) {
    read(hot, 7, 1000 + count);
    if (read(hot, 1, count % 50) && count >= 20_000) hits += 1;
  }
  assert.ok(hits > 19_000, `${hits} of 20000`);
});

test("an empty place takes the first block, a taken one only a block that came back soon", () => {
  const hot = new HotBlocks(new UploadBudget(10 * MIB, largeBytes));
  const pass = (count: number): void => {
    for (let index = 0; index < count; index += 1) hot.offer(9, index, content(9, index), 0);
  };
  pass(100);
  assert.equal(read(hot, 10, 5), false);
  assert.equal(read(hot, 10, 5), true);
  pass(100 * placesOfRegion);
  const offersUntilIn = (object: number): number => {
    let offers = 0;
    while (offers < 100 && !read(hot, object, 5)) offers += 1;
    return offers;
  };
  assert.ok(offersUntilIn(20) < 100);
  for (let object = 21; object < 40; object += 1) {
    const offers = offersUntilIn(object);
    assert.equal(offers, 5, "the first is noted, and of those after it one in four displaces another block");
  }
  for (let object = 40; object < 60; object += 1) assert.equal(read(hot, object, 5), false);
  pass(100 * placesOfRegion);
  for (let object = 40; object < 60; object += 1) {
    assert.equal(read(hot, object, 5), false);
    assert.equal(read(hot, object, 5), false, `object ${object} was forgotten`);
  }
});

test("an upload gets its memory at once, and what was in it is read from the disk again", () => {
  const budget = new UploadBudget(4 * largeBytes, largeBytes);
  const hot = new HotBlocks(budget);
  for (let count = 0; count < 20_000; count += 1) read(hot, 1, count % 300);
  assert.ok(read(hot, 1, 5));
  const waits = (): void => assert.fail("nothing has to wait");
  const uploads = [1, 2, 3, 4].map(() => budget.acquire(largeBytes, waits));
  for (const upload of uploads) upload?.fill(0xaa);
  assert.equal(hot.read(1, 5, Buffer.alloc(BLOCK_BYTES), 0), false);
  for (let count = 0; count < 2000; count += 1) assert.equal(read(hot, 1, count % 300), false);
  for (const upload of uploads) budget.release(upload!);
  for (let count = 0; count < 2000; count += 1) read(hot, 1, count % 300);
  for (let unit = 0; unit < 300; unit += 1) assert.ok(read(hot, 1, unit), `block ${unit} is back`);
});

test("small uploads take memory back too, once they need it", () => {
  const budget = new UploadBudget(3 * largeBytes, largeBytes);
  const hot = new HotBlocks(budget);
  const all = 4 * placesOfRegion;
  for (let count = 0; count < 20 * all; count += 1) read(hot, 1, count % all);
  const buffers: Buffer[] = [];
  for (let bytes = 0; bytes < 3 * largeBytes - MIB; bytes += MIB / 2) {
    buffers.push(budget.acquire(MIB / 2, () => assert.fail("nothing has to wait"))!);
  }
  assert.equal(budget.usedBytes, buffers.length * (MIB / 2));
  for (let unit = 0; unit < all; unit += 1) assert.equal(hot.read(1, unit, Buffer.alloc(BLOCK_BYTES), 0), false);
});
