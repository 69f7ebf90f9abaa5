/** A shard against a plain array of entries, in both of its forms. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { ENCODED_FLAG, RAW_FRAME_UNITS, SHARD_BLOCKS } from "../../src/volume/format/map-page.ts";
import { MapShard } from "../../src/volume/map-shard.ts";

interface Entry {
  source: string;
  offset: number;
}

function check(shard: MapShard, model: (Entry | undefined)[]): void {
  for (let block = 0; block < SHARD_BLOCKS;) {
    shard.locate(block, SHARD_BLOCKS - block);
    for (let index = 0; index < shard.foundBlocks; index += 1) {
      const expected = model[block + index];
      if (shard.foundWord0 === 0) {
        assert.equal(expected, undefined, `block ${block + index} is a hole`);
        continue;
      }
      assert.ok(expected, `block ${block + index} is mapped`);
      const source = (shard.foundWord0 >>> 16) - 1;
      assert.equal(`${shard.sources.epoch[source]}/${shard.sources.sequence[source]}`, expected.source);
      const encoded = (shard.foundWord0 & ENCODED_FLAG) !== 0;
      const word1 = shard.foundWord1 + index * (encoded ? 2 ** 22 : RAW_FRAME_UNITS);
      assert.equal(word1, expected.offset);
    }
    block += shard.foundBlocks;
  }
}

for (const { seed, maxBlocks } of [
  { seed: 1, maxBlocks: 2000 },
  { seed: 2, maxBlocks: 16 },
  { seed: 3, maxBlocks: 1 },
]) {
  test(`random runs and holes equal a plain array, seed ${seed}, up to ${maxBlocks} blocks`, () => {
    const random = new SeededRandom(seed);
    const shard = new MapShard(0);
    const model: (Entry | undefined)[] = Array.from({ length: SHARD_BLOCKS });
    for (let step = 0; step < 12_000; step += 1) {
      const encoded = random.below(5) === 0;
      const block = random.below(SHARD_BLOCKS);
      const limit = Math.min(encoded ? 16 : maxBlocks, SHARD_BLOCKS - block);
      const blocks = 1 + random.below(limit);
      if (random.below(8) === 0) {
        shard.set(block, blocks, 0, 0);
        model.fill(undefined, block, block + blocks);
        continue;
      }
      const sequence = Math.floor(step / 10);
      const source = shard.sourceIndex(0, 7, sequence);
      const offset = random.below(1000);
      shard.set(block, blocks, (((source + 1) << 16) | (encoded ? ENCODED_FLAG | 40 : RAW_FRAME_UNITS)) >>> 0, offset);
      for (let index = 0; index < blocks; index += 1) {
        model[block + index] = {
          source: `7/${sequence}`,
          offset: offset + index * (encoded ? 2 ** 22 : RAW_FRAME_UNITS),
        };
      }
      if (step % 4000 === 3999) {
        check(MapShard.fromPage(0, shard.toPage()), model);
        check(shard, model);
      }
    }
    check(shard, model);
    shard.set(0, SHARD_BLOCKS, 0, 0);
    assert.ok(shard.isEmpty());
  });
}
