/**
 * Applying the index of a durable segment to the map: the same code for a segment just uploaded and for one read back
 * at recovery. Segments are applied in the order of the log; each extent replaces what stood there before.
 */
import type { Clock } from "../base/clock.ts";
import type { BlockMap } from "./block-map.ts";
import { corrupt } from "./format/fields.ts";
import { FRAME_ALIGN_BYTES } from "./format/frame.ts";
import { ENCODED_FLAG, RAW_FRAME_UNITS, SHARD_BLOCKS } from "./format/map-page.ts";
import { EXTENT_ENCODED, EXTENT_ZERO, type SegmentExtents } from "./format/segment.ts";
import { advanceWord1, type MapShard } from "./map-shard.ts";

/** Extents between two moments in which other work of the thread may run. */
const YIELD_EXTENTS = 2048;

/**
 * Maps every block of `extents` to the segment (epoch, sequence) of the volume itself, or to a hole for zeroes. Loads
 * shards as it goes; while it runs, readers may see some of the extents and not others, so the overlay must still
 * cover them. Applying the same segment again changes nothing. "corrupt" where an extent lies outside the volume.
 */
export async function applyExtents(
  map: BlockMap,
  clock: Clock,
  source: { epoch: number; sequence: number },
  extents: SegmentExtents,
): Promise<void> {
  let shard: MapShard | undefined;
  for (let index = 0; index < extents.count; index += 1) {
    if (index % YIELD_EXTENTS === YIELD_EXTENTS - 1) await clock.yield();
    const kind = extents.kind[index];
    const word0Low =
      kind === EXTENT_ENCODED ? ENCODED_FLAG | (extents.storedLength[index] / FRAME_ALIGN_BYTES) : RAW_FRAME_UNITS;
    let lba = extents.lba[index];
    let rest = extents.blockCount[index];
    let word1 = extents.offset[index] / FRAME_ALIGN_BYTES;
    while (rest > 0) {
      const shardIndex = Math.floor(lba / SHARD_BLOCKS);
      if (shardIndex >= map.shardCount) throw corrupt("a segment holds blocks outside the volume", { lba });
      const block = lba - shardIndex * SHARD_BLOCKS;
      const count = Math.min(rest, SHARD_BLOCKS - block);
      if (kind === EXTENT_ZERO && count === SHARD_BLOCKS) map.clearShard(shardIndex);
      else if (kind !== EXTENT_ZERO || !map.isHole(shardIndex)) {
        if (shard?.index !== shardIndex) {
          if (shard !== undefined) map.account(shard);
          shard = undefined;
        }
        // Taken from the map anew each time: after a pause the shard may have been dropped and loaded again.
        shard = map.getLoaded(shardIndex);
        if (shard !== undefined) place(shard, block, count, kind === EXTENT_ZERO ? 0 : word0Low, word1, source);
        else {
          const [low, high] = [kind === EXTENT_ZERO ? 0 : word0Low, word1];
          shard = await map.whileLoaded(shardIndex, (loaded) => place(loaded, block, count, low, high, source));
        }
      }
      word1 = kind === EXTENT_ZERO ? 0 : advanceWord1(word0Low, word1, count);
      lba += count;
      rest -= count;
    }
  }
  if (shard !== undefined) map.account(shard);
}

/** Maps `count` blocks from `block` to what the words say of `source`; to a hole where `word0Low` is 0. */
function place(
  shard: MapShard,
  block: number,
  count: number,
  word0Low: number,
  word1: number,
  source: { epoch: number; sequence: number },
): MapShard {
  if (word0Low === 0) shard.set(block, count, 0, 0);
  else {
    const sourceIndex = shard.sourceIndex(0, source.epoch, source.sequence);
    shard.set(block, count, (((sourceIndex + 1) << 16) | word0Low) >>> 0, word1);
  }
  return shard;
}
