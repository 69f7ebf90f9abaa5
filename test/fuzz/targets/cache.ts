/**
 * The block cache's two files. Whatever is in them, a read answers the bytes that were cached under this identity, or
 * a miss: the checksums are seeded with the identity, so neither forged rows nor moved or older content is served.
 */
import assert from "node:assert/strict";
import { crc32 } from "../../../src/base/checksum.ts";
import { nullLog } from "../../../src/base/log.ts";
import { MemoryDisk } from "../../../src/base/memory-disk.ts";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { BlockCache } from "../../../src/volume/block-cache.ts";
import { type ObjectIdentity, PART_BYTES } from "../../../src/volume/cache-index.ts";
import type { VolumeUid } from "../../../src/volume/identity.ts";
import { VirtualClock } from "../../simulation/virtual-clock.ts";
import type { FuzzTarget } from "../target.ts";

const CAPACITY_BYTES = 64 * PART_BYTES;
export const ROW_BYTES = 88;
const HEADER_BYTES = 32;

interface CachedPart {
  object: ObjectIdentity;
  part: number;
  bytes: Buffer;
}

function openCache(disk: MemoryDisk): Promise<BlockCache> {
  return BlockCache.open({ disk, capacityBytes: CAPACITY_BYTES, clock: new VirtualClock(), log: nullLog });
}

/** Parts of several objects of two volumes, data and map, whole and short. */
export function someParts(count: number, seed: number): CachedPart[] {
  const random = new SeededRandom(seed);
  return Array.from({ length: count }, (_, index) => ({
    object: {
      uid: (index % 2 === 0 ? "a" : "b").repeat(32) as VolumeUid,
      epoch: 1 + (index % 3),
      sequence: index,
      kind: index % 4 === 0 ? "map" : "segment",
    },
    part: index % 2,
    bytes: random.bytes(index % 5 === 0 ? 1 + random.below(PART_BYTES) : PART_BYTES),
  }));
}

/** The files of a cache that holds `parts`. */
export async function cacheFiles(parts: readonly CachedPart[]): Promise<{ index: Buffer; blocks: Buffer }> {
  const disk = new MemoryDisk();
  const cache = await openCache(disk);
  for (const { object, part, bytes } of parts) {
    cache.insert(object, part, bytes);
    await cache.settled();
  }
  await cache.close();
  return { index: await contentOf(disk, "cache-index"), blocks: await contentOf(disk, "cache-blocks") };
}

async function contentOf(disk: MemoryDisk, name: string): Promise<Buffer> {
  const file = await disk.open(name);
  const bytes = Buffer.alloc(file.sizeBytes());
  file.readSync(bytes, 0);
  await file.close();
  return bytes;
}

/** Opens a cache over the files and reads every part; answers how many were served, each with its right bytes. */
export async function servedParts(
  files: { index: Buffer; blocks: Buffer },
  parts: readonly CachedPart[],
): Promise<number> {
  const disk = new MemoryDisk();
  for (const [name, bytes] of [
    ["cache-index", files.index],
    ["cache-blocks", files.blocks],
  ] as const) {
    const file = await disk.open(name, { create: true });
    if (bytes.length > 0) file.writeSync(bytes, 0);
    await file.close();
  }
  const cache = await openCache(disk);
  let served = 0;
  for (const [index, { object, part, bytes }] of parts.entries()) {
    const target = Buffer.alloc(bytes.length);
    const offset = part * PART_BYTES;
    const hit = index % 2 === 0 ? cache.readSync(object, offset, target) : await cache.read(object, offset, target);
    if (!hit) continue;
    served += 1;
    assert.ok(target.equals(bytes), `wrong bytes for sequence ${object.sequence}`);
  }
  await cache.close();
  return served;
}

/** Right checksums over whatever header and rows the index has, as far as one group of rows goes. */
export function mendIndex(bytes: Buffer): Buffer {
  if (bytes.length < HEADER_BYTES) return bytes;
  const rowsAt = HEADER_BYTES + bytes.readUInt32LE(16) * 16;
  if (rowsAt > bytes.length) return bytes;
  const headerCrc = crc32(bytes.subarray(HEADER_BYTES, rowsAt), crc32(bytes.subarray(0, 28)));
  bytes.writeUInt32LE(headerCrc, 28);
  const rows = Math.floor((bytes.length - rowsAt - 4) / ROW_BYTES);
  if (rows < 0 || rows > 1024) return bytes;
  bytes.writeUInt32LE(crc32(bytes.subarray(rowsAt, rowsAt + rows * ROW_BYTES), headerCrc), rowsAt + rows * ROW_BYTES);
  return bytes;
}

async function cacheIndex(): Promise<FuzzTarget> {
  const parts = someParts(12, 1);
  const { index, blocks } = await cacheFiles(parts);
  return {
    name: "cache-index",
    seeds: [index],
    mend: mendIndex,
    memoryBytes: 32 * 1024 * 1024,
    run: async (input) => ((await servedParts({ index: input, blocks }, parts)) > 0 ? "served" : "empty"),
  };
}

async function cacheBlocks(): Promise<FuzzTarget> {
  const parts = someParts(6, 2);
  const { index, blocks } = await cacheFiles(parts);
  return {
    name: "cache-blocks",
    seeds: [blocks],
    memoryBytes: 32 * 1024 * 1024,
    run: async (input) => ((await servedParts({ index, blocks: input }, parts)) === parts.length ? "all" : "fewer"),
  };
}

export const cacheTargets = { "cache-index": cacheIndex, "cache-blocks": cacheBlocks } as const;
