/**
 * The block cache's two files, read as the engine reads them: frame by frame, each verified by its own checksum.
 * Whatever is in the files, what passes are the bytes that were cached under this identity: neither forged rows nor moved
 * or older content is served.
 */
import assert from "node:assert/strict";
import { crc32 } from "../../../src/base/checksum.ts";
import { nullLog } from "../../../src/base/log.ts";
import { MemoryDisk } from "../../../src/base/memory-disk.ts";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { BlockCache } from "../../../src/volume/block-cache.ts";
import { type ObjectIdentity, PART_BYTES } from "../../../src/volume/cache-index.ts";
import {
  FRAME_HEADER_BYTES,
  isIntactRawFrame,
  RAW_FRAME_BYTES,
  sealRawFrame,
  segmentFrameSeed,
} from "../../../src/volume/format/frame.ts";
import type { VolumeUid } from "../../../src/volume/identity.ts";
import { VirtualClock } from "../../simulation/virtual-clock.ts";
import type { FuzzTarget } from "../target.ts";

const CAPACITY_BYTES = 64 * PART_BYTES;
export const ROW_BYTES = 24;
const HEADER_BYTES = 32;

interface CachedPart {
  object: ObjectIdentity;
  part: number;
  /** Frames of consecutive blocks from `lba`. */
  lba: number;
  bytes: Buffer;
}

function openCache(disk: MemoryDisk): Promise<BlockCache> {
  return BlockCache.open({ disk, capacityBytes: CAPACITY_BYTES, clock: new VirtualClock(), log: nullLog });
}

const seedOf = ({ uid, epoch, sequence }: ObjectIdentity): number => segmentFrameSeed(uid, epoch, sequence);

/** Parts of several objects of two volumes, data and map, long and short. */
export function someParts(
  count: number,
  seed: number,
  { maxFrames = Math.floor(PART_BYTES / RAW_FRAME_BYTES), firstSequence = 0 } = {},
): CachedPart[] {
  const random = new SeededRandom(seed);
  return Array.from({ length: count }, (_, index) => {
    const object: ObjectIdentity = {
      uid: (index % 2 === 0 ? "a" : "b").repeat(32) as VolumeUid,
      epoch: 1 + (index % 3),
      sequence: firstSequence + index,
      kind: index % 4 === 0 ? "map" : "segment",
    };
    const lba = random.below(1000);
    const frames = index % 5 === 0 ? 1 + random.below(maxFrames) : maxFrames;
    const bytes = Buffer.alloc(frames * RAW_FRAME_BYTES);
    for (let frame = 0; frame < frames; frame += 1) {
      random.bytes(RAW_FRAME_BYTES - FRAME_HEADER_BYTES).copy(bytes, frame * RAW_FRAME_BYTES + FRAME_HEADER_BYTES);
      sealRawFrame(bytes, frame * RAW_FRAME_BYTES, lba + frame, seedOf(object));
    }
    return { object, part: index % 2, lba, bytes };
  });
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

/** Opens a cache over the files and reads every part; answers how many were served whole, each with its right bytes. */
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
  for (const [index, each] of parts.entries()) if (await isServed(cache, each, index % 2 === 0)) served += 1;
  await cache.close();
  return served;
}

/** Reads the part's frames, as the engine does; false where one of them is not there or does not hold. */
async function isServed(cache: BlockCache, { object, part, lba, bytes }: CachedPart, sync: boolean): Promise<boolean> {
  const frame = Buffer.alloc(RAW_FRAME_BYTES);
  for (let at = 0; at < bytes.length; at += RAW_FRAME_BYTES) {
    const offset = part * PART_BYTES + at;
    const hit = sync ? cache.readSync(object, offset, frame) : await cache.read(object, offset, frame);
    if (!hit) return false;
    if (!isIntactRawFrame(frame, 0, lba + at / RAW_FRAME_BYTES, seedOf(object))) {
      cache.drop(object, offset, RAW_FRAME_BYTES);
      return false;
    }
    assert.ok(frame.equals(bytes.subarray(at, at + RAW_FRAME_BYTES)), `wrong bytes for sequence ${object.sequence}`);
  }
  return true;
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
