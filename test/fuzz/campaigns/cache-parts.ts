/**
 * Parts of the block cache that have rotted on the node's disk, were exchanged for others (by their bytes, or by their
 * names in the index), or went back to what stood in their slots before (blocks, index, or both of an earlier time). Each must be found: what is damaged is
 * never served, and what is not is served as it was cached.
 */
import assert from "node:assert/strict";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { PART_BYTES } from "../../../src/volume/cache-index.ts";
import { cacheFiles, mendIndex, ROW_BYTES, servedParts, someParts } from "../targets/cache.ts";

const PARTS = 8;

export interface CacheReport {
  trials: number;
  /** Parts that were damaged, and how many of them were served: none. */
  damagedParts: number;
}

export async function damageCache(options: { seed: number; trials: number }): Promise<CacheReport> {
  const report: CacheReport = { trials: 0, damagedParts: 0 };
  const parts = someParts(PARTS, 5, { maxFrames: 3 });
  const former = someParts(PARTS, 6, { maxFrames: 3, firstSequence: 1000 });
  const now = await cacheFiles(parts);
  const before = await cacheFiles(former);
  for (let trial = 0; trial < options.trials; trial += 1) {
    const random = new SeededRandom(Math.imul(options.seed, 0x9e3779b1) ^ trial);
    const blocks = Buffer.from(now.blocks);
    const index = Buffer.from(now.index);
    const slot = random.below(PARTS);
    const damaged = new Set([slot]);
    const other = (slot + 1 + random.below(PARTS - 1)) % PARTS;
    switch (random.below(4)) {
      case 0:
        blocks[slot * PART_BYTES + random.below(parts[slot].bytes.length)] ^= 1 << random.below(8);
        break;
      case 1:
        copySlot(now.blocks, other, blocks, slot);
        copySlot(now.blocks, slot, blocks, other);
        damaged.add(other);
        break;
      case 2:
        exchangeNames(index, slot, other);
        damaged.add(other);
        break;
      default:
        copySlot(before.blocks, slot, blocks, slot);
    }
    const served = await servedParts({ index, blocks }, parts);
    const where = `seed=${options.seed} trial=${trial}`;
    assert.equal(served, PARTS - damaged.size, `damaged parts must be missed and no others: ${where}`);
    report.trials += 1;
    report.damagedParts += damaged.size;
  }
  // Both files as they were at another time than each other: nothing of either may be taken for the other's.
  assert.equal(await servedParts({ index: before.index, blocks: now.blocks }, parts), 0);
  assert.equal(await servedParts({ index: now.index, blocks: before.blocks }, parts), 0);
  assert.equal(await servedParts(before, parts), 0);
  return report;
}

/** Two rows of the index exchange the parts that they name, and keep their slots; the file's checksums are mended. */
function exchangeNames(index: Buffer, one: number, other: number): void {
  const rowsAt = index.length - 4 - PARTS * ROW_BYTES;
  const rows = [one, other].map((slot) => {
    const row = Array.from({ length: PARTS }, (_, number) => rowsAt + number * ROW_BYTES);
    return row.find((at) => index.readUInt32LE(at) === slot)!;
  });
  const [first, second] = rows.map((at) => Buffer.from(index.subarray(at + 4, at + 20)));
  second.copy(index, rows[0] + 4);
  first.copy(index, rows[1] + 4);
  mendIndex(index);
}

function copySlot(from: Buffer, fromSlot: number, to: Buffer, toSlot: number): void {
  from.copy(to, toSlot * PART_BYTES, fromSlot * PART_BYTES, fromSlot * PART_BYTES + PART_BYTES);
}
