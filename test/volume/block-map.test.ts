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
