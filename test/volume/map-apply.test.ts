/** Applying segments to a map whose memory is short: what was applied must be in the map, whatever is dropped meanwhile. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { BlockMap, MapBudget } from "../../src/volume/block-map.ts";
import { SHARD_BLOCKS } from "../../src/volume/format/map-page.ts";
import { EXTENT_RAW, SegmentExtents } from "../../src/volume/format/segment.ts";
import { RAW_FRAME_BYTES } from "../../src/volume/format/frame.ts";
import { BLOCK_BYTES } from "../../src/volume/identity.ts";
import { applyExtents } from "../../src/volume/map-apply.ts";
import { MapShard } from "../../src/volume/map-shard.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";

test("a shard that another one displaces at the moment in which both have been loaded is loaded again", async () => {
  const pages = Promise.withResolvers<void>();
  const map = new BlockMap(2 * SHARD_BLOCKS * BLOCK_BYTES, new MapBudget(1), async (index) => {
    await pages.promise;
    return new MapShard(index);
  });
  for (const shard of [0, 1]) map.setPage(shard, { lineage: 0, epoch: 1, number: 1, offset: 64 * shard, length: 64 });
  const extents = new SegmentExtents(1);
  extents.push(7, 1, EXTENT_RAW, 0, 4096, RAW_FRAME_BYTES);
  const applied = applyExtents(map, new VirtualClock(), { epoch: 2, sequence: 1 }, extents);
  const other = map.load(1);
  pages.resolve();
  await Promise.all([applied, other]);
  const shard = map.getLoaded(0);
  shard?.locate(7, 1);
  assert.notEqual(shard?.foundWord0 ?? 0, 0, "the block is mapped");
});
