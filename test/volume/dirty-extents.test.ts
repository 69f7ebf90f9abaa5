/** The overlay against a plain map of blocks. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { DirtyExtents } from "../../src/volume/dirty-extents.ts";
import { RAW_FRAME_BYTES } from "../../src/volume/format/frame.ts";

const BLOCKS = 3000;

function checkEqual(extents: DirtyExtents, model: Float64Array): void {
  for (let lba = 0; lba < BLOCKS;) {
    extents.locate(lba, BLOCKS - lba);
    assert.ok(extents.foundBlocks > 0);
    for (let index = 0; index < extents.foundBlocks; index += 1) {
      const value = extents.foundValue > 0 ? extents.foundValue + index * RAW_FRAME_BYTES : extents.foundValue;
      assert.equal(value, model[lba + index], `block ${lba + index}`);
    }
    lba += extents.foundBlocks;
  }
}

for (const seed of [1, 2, 3, 4]) {
  test(`random inserts and removals equal a plain array, seed ${seed}`, () => {
    const random = new SeededRandom(seed);
    const extents = new DirtyExtents();
    const model = new Float64Array(BLOCKS);
    let position = 4096;
    for (let step = 0; step < 6000; step += 1) {
      const lba = random.below(BLOCKS);
      const blocks = 1 + random.below(Math.min(seed % 2 === 0 ? 3 : 60, BLOCKS - lba));
      position += 400_000;
      if (random.below(4) === 0) {
        const before = position - random.below(400) * 400_000;
        extents.removeBefore(lba, blocks, before);
        for (let index = lba; index < lba + blocks; index += 1) {
          const extentPosition = Math.abs(model[index]);
          if (extentPosition < before) model[index] = 0;
        }
      } else {
        const zero = random.below(3) === 0;
        extents.insert(lba, blocks, zero ? -position : position);
        for (let index = 0; index < blocks; index += 1)
          model[lba + index] = zero ? -position : position + index * RAW_FRAME_BYTES;
      }
      if (step % 500 === 0) checkEqual(extents, model);
    }
    checkEqual(extents, model);
    let last = -1;
    let counted = 0;
    extents.forEach((lba, blocks) => {
      assert.ok(lba >= last);
      last = lba + blocks;
      counted += 1;
    });
    assert.equal(counted, extents.count);
  });
}

test("many thousand extents are found, also after long ones have covered some and most have gone", () => {
  const random = new SeededRandom(9);
  const extents = new DirtyExtents();
  const size = 100_000;
  const model = new Float64Array(size);
  const check = (): void => {
    for (let lba = 0; lba < size; lba += 1) {
      extents.locate(lba, 1);
      assert.equal(extents.foundValue, model[lba], `block ${lba}`);
    }
  };
  let position = 4096;
  const insert = (longest: number): void => {
    const lba = random.below(size - longest);
    const blocks = 1 + random.below(longest);
    position += 400_000;
    extents.insert(lba, blocks, position);
    for (let index = 0; index < blocks; index += 1) model[lba + index] = position + index * RAW_FRAME_BYTES;
  };
  for (let step = 0; step < 60_000; step += 1) insert(1);
  assert.ok(extents.count > 40_000);
  check();
  for (let step = 0; step < 300; step += 1) {
    insert(600);
    if (step % 20 === 0) check();
  }
  for (let step = 0; step < 3000; step += 1) {
    const lba = random.below(size - 100);
    const blocks = 1 + random.below(100);
    extents.removeBefore(lba, blocks, Number.MAX_SAFE_INTEGER);
    model.fill(0, lba, lba + blocks);
  }
  assert.ok(extents.count < 20_000);
  check();
});

test("an overlay that was emptied after a burst holds what comes next", () => {
  const extents = new DirtyExtents();
  for (const size of [40_000, 100, 5000]) {
    for (let lba = 0; lba < size; lba += 1) extents.insert(size * 2 - lba * 2, 1, 4096 + lba * 8192);
    assert.equal(extents.count, size);
    extents.locate(size, 1);
    assert.deepEqual([extents.foundValue, extents.foundBlocks], [4096 + (size / 2) * 8192, 1]);
    extents.removeBefore(0, size * 2 + 1, Number.MAX_SAFE_INTEGER);
    assert.equal(extents.count, 0);
    extents.locate(0, size);
    assert.deepEqual([extents.foundValue, extents.foundBlocks], [0, size]);
  }
});
