/**
 * A map page (docs/format.md, "Map page"): where each 4 KiB block of one shard (32,768 blocks, 128 MiB) is stored.
 *
 *    0 u32 magic "S3MP"   4 u32 shard   8 u16 encoding (0 runs, 1 flat)   10 u16 0   12 u32 source count
 *   16 u32 run count (flat: 32768)   20 u32 length of the page   24 u32 CRC-32   28 u32 0
 *   then the sources (object-references.ts), then
 *   runs:  {u16 start   u16 count - 1   u32 word0   u32 word1}, ascending, not overlapping
 *   flat:  32768 x {u32 word0   u32 word1}, both zero = hole
 *
 *   word0: bits 31-16 source index + 1, 15-14 zero, 13 encoded, 12-0 stored units (16 bytes each, frame header included)
 *   word1: bits 31-26 zero, 25-22 block within the frame, 21-0 offset of the frame in units from the object's start
 *
 * A run of raw frames (257 units, one block each) goes on 257 units further with every block; a run of an encoded frame
 * stays at its offset and counts the block within the frame. Both encodings say the same; the smaller one is written.
 *
 * The checksum covers the page with its own field zero and is continued from a seed that names the map object
 * (mapPageSeed): pages are read without the head of their object, and the page of another one must not pass for it.
 */
import { assert } from "../../base/assert.ts";
import { crc32 } from "../../base/checksum.ts";
import { BLOCK_BYTES } from "../identity.ts";
import { checkZero, corrupt } from "./fields.ts";
import { OBJECT_REFERENCE_BYTES, type ObjectReferences, readReferences, writeReferences } from "./object-references.ts";
import { FRAME_ALIGN_BYTES, RAW_FRAME_BYTES, segmentFrameSeed } from "./frame.ts";
import { MAX_FRAME_BLOCKS, MAX_VOLUME_BLOCKS } from "./segment.ts";

export const SHARD_BLOCKS = 32768;
/** Shards of the largest volume. */
export const MAX_SHARDS = MAX_VOLUME_BLOCKS / SHARD_BLOCKS;
/** Stored units of a raw frame. */
export const RAW_FRAME_UNITS = RAW_FRAME_BYTES / FRAME_ALIGN_BYTES;
/** In word0: the frame holds up to 16 blocks, encoded together. */
export const ENCODED_FLAG = 1 << 13;
const MAGIC = 0x504d_3353;
const HEADER_BYTES = 32;
const CRC_OFFSET = 24;
const RUN_BYTES = 12;
const WORDS_BYTES = 8;
const ENCODING_RUNS = 0;
const ENCODING_FLAT = 1;
const MAX_SOURCES = 65_535;
/** No page is longer: all sources, and a run for every block. */
export const MAX_PAGE_BYTES = HEADER_BYTES + MAX_SOURCES * OBJECT_REFERENCE_BYTES + SHARD_BLOCKS * RUN_BYTES;
const UNITS_MASK = 0x1fff;
const MAX_FRAME_UNITS = 1 + (MAX_FRAME_BLOCKS * BLOCK_BYTES) / FRAME_ALIGN_BYTES;
const OFFSET_LIMIT = 2 ** 22;
/** Added to word1 for the next block of an encoded frame. */
const NEXT_IN_FRAME = 2 ** 22;

/** Growing columns, ascending by start, not overlapping. */
export class MapPageRuns {
  count = 0;
  /** First block within the shard. */
  start: Uint16Array;
  blockCount: Uint16Array;
  /** The entry of the run's first block. */
  word0: Uint32Array;
  word1: Uint32Array;

  constructor(capacity = 64) {
    this.start = new Uint16Array(capacity);
    this.blockCount = new Uint16Array(capacity);
    this.word0 = new Uint32Array(capacity);
    this.word1 = new Uint32Array(capacity);
  }

  /** Positional, because it runs for every run of a page. */
  push(start: number, blockCount: number, word0: number, word1: number): void {
    const index = this.count;
    if (index === this.start.length) this.#grow();
    this.start[index] = start;
    this.blockCount[index] = blockCount;
    this.word0[index] = word0;
    this.word1[index] = word1;
    this.count = index + 1;
  }

  #grow(): void {
    const capacity = Math.max(64, this.start.length * 2);
    const { start, blockCount, word0, word1 } = this;
    this.start = new Uint16Array(capacity);
    this.start.set(start);
    this.blockCount = new Uint16Array(capacity);
    this.blockCount.set(blockCount);
    this.word0 = new Uint32Array(capacity);
    this.word0.set(word0);
    this.word1 = new Uint32Array(capacity);
    this.word1.set(word1);
  }
}

export interface MapPage {
  sources: ObjectReferences;
  runs: MapPageRuns;
}

/** What the checksums of the pages of map object `number` of `epoch` are continued from. */
export function mapPageSeed(uid: string, epoch: number, number: number): number {
  return segmentFrameSeed(uid, epoch, number);
}

/** The page of `shard` in the smaller of the two encodings; `seed` is that of its object (mapPageSeed). */
export function encodeMapPage(shard: number, sources: ObjectReferences, runs: MapPageRuns, seed: number): Buffer {
  const problem = findRunProblem(runs, sources.count);
  assert(problem === undefined && shard < MAX_SHARDS, `map page cannot be written: ${problem ?? "shard"}`);
  assert(sources.count <= MAX_SOURCES, "a map page names its sources in 16 bits");
  const flat = runs.count * RUN_BYTES > SHARD_BLOCKS * WORDS_BYTES;
  const body = HEADER_BYTES + sources.count * OBJECT_REFERENCE_BYTES;
  const bytes = Buffer.alloc(body + (flat ? SHARD_BLOCKS * WORDS_BYTES : runs.count * RUN_BYTES));
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt32LE(shard, 4);
  bytes.writeUInt16LE(flat ? ENCODING_FLAT : ENCODING_RUNS, 8);
  bytes.writeUInt32LE(sources.count, 12);
  bytes.writeUInt32LE(flat ? SHARD_BLOCKS : runs.count, 16);
  bytes.writeUInt32LE(bytes.length, 20);
  writeReferences(bytes, HEADER_BYTES, sources);
  if (flat) writeFlat(bytes, body, runs);
  else writeRuns(bytes, body, runs);
  bytes.writeUInt32LE(crc32(bytes, seed), CRC_OFFSET);
  return bytes;
}

/** `bytes` are exactly one page of the object with `seed`. A flat page comes back as runs too. */
export function decodeMapPage(bytes: Buffer, expectedShard: number, seed: number): MapPage {
  if (bytes.length < HEADER_BYTES || bytes.readUInt32LE(0) !== MAGIC) {
    throw corrupt("map page has no valid header", { shard: expectedShard, length: bytes.length });
  }
  if (bytes.readUInt32LE(20) !== bytes.length) {
    throw corrupt("map page is not as long as it says", { shard: expectedShard, length: bytes.length });
  }
  if (bytes.readUInt32LE(CRC_OFFSET) !== pageChecksum(bytes, seed)) {
    throw corrupt("checksum of the map page does not match", { shard: expectedShard });
  }
  const shard = bytes.readUInt32LE(4);
  if (shard !== expectedShard) throw corrupt("map page is of another shard", { expected: expectedShard, found: shard });
  checkZero(bytes, 10, 12);
  checkZero(bytes, 28, HEADER_BYTES);
  const encoding = bytes.readUInt16LE(8);
  const sourceCount = bytes.readUInt32LE(12);
  const runCount = bytes.readUInt32LE(16);
  if (encoding > ENCODING_FLAT) throw corrupt("map page has an unknown encoding", { shard, encoding });
  const body = HEADER_BYTES + sourceCount * OBJECT_REFERENCE_BYTES;
  const length = body + runCount * (encoding === ENCODING_FLAT ? WORDS_BYTES : RUN_BYTES);
  const flatCountHolds = encoding !== ENCODING_FLAT || runCount === SHARD_BLOCKS;
  if (length !== bytes.length || sourceCount > MAX_SOURCES || runCount > SHARD_BLOCKS || !flatCountHolds) {
    throw corrupt("map page does not hold what it counts", { shard, sourceCount, runCount });
  }
  const sources = readReferences(bytes, HEADER_BYTES, sourceCount);
  const runs = encoding === ENCODING_FLAT ? readFlat(bytes, body) : readRuns(bytes, body, runCount);
  const problem = findRunProblem(runs, sourceCount);
  if (problem !== undefined) throw corrupt(`map page is invalid: ${problem}`, { shard });
  return { sources, runs };
}

function pageChecksum(bytes: Buffer, seed: number): number {
  const head = crc32(bytes.subarray(0, CRC_OFFSET), seed);
  return crc32(bytes.subarray(CRC_OFFSET + 4), crc32(Buffer.alloc(4), head));
}

function writeRuns(bytes: Buffer, at: number, runs: MapPageRuns): void {
  for (let index = 0; index < runs.count; index += 1, at += RUN_BYTES) {
    bytes.writeUInt16LE(runs.start[index], at);
    bytes.writeUInt16LE(runs.blockCount[index] - 1, at + 2);
    bytes.writeUInt32LE(runs.word0[index], at + 4);
    bytes.writeUInt32LE(runs.word1[index], at + 8);
  }
}

function readRuns(bytes: Buffer, at: number, count: number): MapPageRuns {
  const runs = new MapPageRuns(count);
  for (let index = 0; index < count; index += 1, at += RUN_BYTES) {
    const blockCount = bytes.readUInt16LE(at + 2) + 1;
    if (blockCount > SHARD_BLOCKS) throw corrupt("map page is invalid: run is too long", { index });
    runs.push(bytes.readUInt16LE(at), blockCount, bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at + 8));
  }
  return runs;
}

function writeFlat(bytes: Buffer, body: number, runs: MapPageRuns): void {
  for (let index = 0; index < runs.count; index += 1) {
    const word0 = runs.word0[index];
    const step = word1Step(word0);
    let word1 = runs.word1[index];
    let at = body + runs.start[index] * WORDS_BYTES;
    for (let left = runs.blockCount[index]; left > 0; left -= 1, at += WORDS_BYTES, word1 += step) {
      bytes.writeUInt32LE(word0, at);
      bytes.writeUInt32LE(word1, at + 4);
    }
  }
}

function readFlat(bytes: Buffer, body: number): MapPageRuns {
  const runs = new MapPageRuns();
  let start = 0;
  while (start < SHARD_BLOCKS) {
    const at = body + start * WORDS_BYTES;
    const word0 = bytes.readUInt32LE(at);
    const word1 = bytes.readUInt32LE(at + 4);
    let end = start + 1;
    if (word0 === 0) {
      if (word1 !== 0) throw corrupt("map page is invalid: hole with a place", { block: start });
    } else {
      const step = word1Step(word0);
      while (
        end < SHARD_BLOCKS &&
        bytes.readUInt32LE(body + end * WORDS_BYTES) === word0 &&
        bytes.readUInt32LE(body + end * WORDS_BYTES + 4) === word1 + (end - start) * step
      ) {
        end += 1;
      }
      runs.push(start, end - start, word0, word1);
    }
    start = end;
  }
  return runs;
}

/** What word1 grows by from one block of a run to the next. */
export function word1Step(word0: number): number {
  return (word0 & ENCODED_FLAG) === 0 ? RAW_FRAME_UNITS : NEXT_IN_FRAME;
}

function findRunProblem(runs: MapPageRuns, sourceCount: number): string | undefined {
  let next = 0;
  for (let index = 0; index < runs.count; index += 1) {
    const blockCount = runs.blockCount[index];
    if (runs.start[index] < next) return "runs overlap or are not in order";
    next = runs.start[index] + blockCount;
    if (blockCount === 0 || next > SHARD_BLOCKS) return "run is outside the shard";
    const problem = findEntryProblem(runs.word0[index], runs.word1[index], blockCount, sourceCount);
    if (problem !== undefined) return problem;
  }
  return undefined;
}

/** What is wrong with a run of `blockCount` blocks that begins with the entry (word0, word1). */
function findEntryProblem(word0: number, word1: number, blockCount: number, sourceCount: number): string | undefined {
  const source = (word0 >>> 16) - 1;
  const storedUnits = word0 & UNITS_MASK;
  const offsetUnits = word1 % OFFSET_LIMIT;
  const blockInFrame = Math.floor(word1 / NEXT_IN_FRAME);
  if (source < 0 || source >= sourceCount) return "run names no source";
  if ((word0 & 0xc000) !== 0 || blockInFrame >= MAX_FRAME_BLOCKS) return "run has reserved bits";
  if ((word0 & ENCODED_FLAG) === 0) {
    if (storedUnits !== RAW_FRAME_UNITS || blockInFrame !== 0) return "raw run is not of raw frames";
    return offsetUnits + blockCount * storedUnits > OFFSET_LIMIT ? "run is outside any segment" : undefined;
  }
  if (storedUnits < 2 || storedUnits > MAX_FRAME_UNITS) return "encoded frame has no valid length";
  if (offsetUnits + storedUnits > OFFSET_LIMIT) return "run is outside any segment";
  return blockInFrame + blockCount > MAX_FRAME_BLOCKS ? "run is longer than its frame" : undefined;
}
