/**
 * What simulated users write, and where. Each block says its version and its number at every sector, so that no part
 * can be another's. The blocks that are used lie in groups all over the volume, on both sides of borders between shards
 * of the map; the simulation numbers them from 0 in order of address.
 */
import { SHARD_BLOCKS } from "../../src/volume/format/map-page.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { OracleError } from "./oracle.ts";

export const volumeId = mustVolumeId("vol-sim");
export const BLOCK = 4096;
const SECTOR_WORDS = 128;
const SECTORS = 8;
export const SHARDS = 8;
export const VOLUME_BYTES = SHARDS * SHARD_BLOCKS * BLOCK;

/** Blocks filled with each byte, made when first used: version and number in their sectors are put in for each use. */
const patterns: { bytes: Buffer; words: Uint32Array }[] = [];

/** A run of neighbouring blocks: numbers from `first` on stand for the volume's blocks from `block` on. */
export interface Group {
  first: number;
  count: number;
  block: number;
}

export class Layout {
  readonly groups: readonly Group[];
  readonly blocks: number;

  /** `scale` 1: 128 blocks. */
  constructor(scale: number) {
    const border = (shard: number, count: number): [number, number] => [shard * SHARD_BLOCKS - count / 2, count];
    const runs = [
      [1000, 16 * scale],
      border(1, 64 * scale),
      [2 * SHARD_BLOCKS + 5000, 16 * scale],
      border(4, 16 * scale),
      [6 * SHARD_BLOCKS, 16 * scale],
    ];
    const groups: Group[] = [];
    let first = 0;
    for (const [block, count] of runs) {
      groups.push({ first, count, block });
      first += count;
    }
    this.groups = groups;
    this.blocks = first;
  }

  groupOf(lba: number): Group {
    return this.groups.find(({ first, count }) => lba < first + count)!;
  }

  /** Byte offset in the volume of a block by its number. */
  offsetOf(lba: number): number {
    const group = this.groupOf(lba);
    return (group.block + lba - group.first) * BLOCK;
  }

  /** Bytes from the start of the first to the end of the last of `blocks` blocks, with all that lies between. */
  lengthOf(lba: number, blocks: number): number {
    return this.offsetOf(lba + blocks - 1) + BLOCK - this.offsetOf(lba);
  }

  /** The numbers of the blocks used in one shard. */
  inShard(shard: number): { lba: number; blocks: number } {
    const numbers: number[] = [];
    for (let lba = 0; lba < this.blocks; lba += 1) {
      if (Math.floor(this.offsetOf(lba) / BLOCK / SHARD_BLOCKS) === shard) numbers.push(lba);
    }
    return { lba: numbers[0] ?? 0, blocks: numbers.length };
  }
}

export function encodeVersion(version: number, lba: number, blocks: number): Buffer {
  const bytes = Buffer.allocUnsafe(blocks * BLOCK);
  for (let block = 0; block < blocks; block += 1) patternOf(version, lba + block).copy(bytes, block * BLOCK);
  return bytes;
}

/** The version of each block; throws where a block is no version whole. */
export function decodeVersions(bytes: Buffer, lba: number): number[] {
  const versions: number[] = [];
  for (let start = 0; start < bytes.length; start += BLOCK) {
    const version = bytes.readUInt32LE(start);
    const block = lba + start / BLOCK;
    const pattern = patternOf(version, version === 0 ? 0 : block);
    if (pattern.compare(bytes, start, start + BLOCK) !== 0) {
      throw new OracleError(`block ${block} is no version whole: it begins as version ${version}`);
    }
    versions.push(version);
  }
  return versions;
}

/** What `block` holds as that version; valid until the next call. */
function patternOf(version: number, block: number): Buffer {
  const filling = version & 0xff;
  let pattern = patterns[filling];
  if (pattern === undefined) {
    const words = new Uint32Array(SECTORS * SECTOR_WORDS).fill(Math.imul(filling, 0x0101_0101));
    pattern = { bytes: Buffer.from(words.buffer), words };
    patterns[filling] = pattern;
  }
  for (let at = 0; at < SECTORS * SECTOR_WORDS; at += SECTOR_WORDS) {
    pattern.words[at] = version;
    pattern.words[at + 1] = block;
  }
  return pattern.bytes;
}
