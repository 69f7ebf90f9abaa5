/** The map's shards while they come and go: what was changed meanwhile is never replaced by what a page says. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { BlockMap, MapBudget } from "../../src/volume/block-map.ts";
import { SHARD_BLOCKS } from "../../src/volume/format/map-page.ts";
import { BLOCK_BYTES } from "../../src/volume/identity.ts";
import { MapShard } from "../../src/volume/map-shard.ts";

test("a shard that is cleared while its page is on its way stays cleared", async () => {
  const page = Promise.withResolvers<void>();
  const map = new BlockMap(SHARD_BLOCKS * BLOCK_BYTES, new MapBudget(1024 * 1024), async (index) => {
    await page.promise;
    const shard = new MapShard(index);
    shard.set(7, 1, 1 << 16, 0);
    return shard;
  });
  map.setPage(0, { lineage: 0, epoch: 1, number: 1, offset: 0, length: 64 });
  const loading = map.load(0);
  map.clearShard(0);
  page.resolve();
  await loading;
  const shard = map.getLoaded(0);
  shard?.locate(7, 1);
  assert.equal(shard?.foundWord0, 0);
});

test("two who wait for different shards, with room for one, both get theirs", async () => {
  let loads = 0;
  const map = new BlockMap(3 * SHARD_BLOCKS * BLOCK_BYTES, new MapBudget(1), async (index) => {
    loads += 1;
    return new MapShard(index);
  });
  for (const shard of [0, 1, 2])
    map.setPage(shard, { lineage: 0, epoch: 1, number: 1, offset: 64 * shard, length: 64 });
  const seen = await Promise.all([0, 1].map((index) => map.whileLoaded(index, (shard) => shard.index)));
  assert.deepEqual(seen, [0, 1]);
  assert.equal(loads, 2, "neither had to be loaded again");
  await map.load(2);
  assert.deepEqual([map.getLoaded(0), map.getLoaded(1)], [undefined, undefined], "nobody waits for them any more");
});
