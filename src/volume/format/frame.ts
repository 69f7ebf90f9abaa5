/**
 * Frames: the unit in which data blocks are stored, in the local journal and in segments alike. Pure, no I/O.
 *
 *   offset size field
 *        0    4 crc32 of bytes 4 … 16 + payload length, continued from a seed that names the place of the frame
 *        4    4 lba, low 32 bits (blocks of 4096 bytes)
 *        8    2 lba, high 16 bits
 *       10    1 block count, 1 to 16
 *       11    1 codec (0 raw)
 *       12    4 payload length in bytes
 *       16      payload
 *
 * The seed binds a frame to its object (segments) or to its journal and position (journal): a frame that was swapped,
 * moved or left over from an earlier use of the space fails its checksum. A raw frame holds one block, so any block
 * can be read and verified with one contiguous read of RAW_FRAME_BYTES.
 */
import { crc32 } from "../../base/checksum.ts";
import { BLOCK_BYTES, type VolumeUid } from "../identity.ts";
import { writeU64, writeUid } from "./fields.ts";

export const FRAME_HEADER_BYTES = 16;
export const RAW_FRAME_BYTES = FRAME_HEADER_BYTES + BLOCK_BYTES;
/** Frames start at multiples of this many bytes. */
export const FRAME_ALIGN_BYTES = 16;

const identity = Buffer.alloc(32);

/** The seed of every frame of one segment. */
export function segmentFrameSeed(uid: string, epoch: number, sequence: number): number {
  writeUid(identity, 0, uid as VolumeUid);
  writeU64(identity, 16, epoch);
  writeU64(identity, 24, sequence);
  return crc32(identity);
}

/** The seed of the journal frame at virtual byte `position` of the journal whose id has the checksum `journalSeed`. */
export function journalFrameSeed(journalSeed: number, position: number): number {
  const unit = position / FRAME_ALIGN_BYTES;
  const high = Math.floor(unit / 0x1_0000_0000);
  return (journalSeed ^ (unit % 0x1_0000_0000) ^ Math.imul(high + 1, 0x9e3779b1)) >>> 0;
}

/** Writes the header of a raw frame at `at`; its payload, one block, must be in place already. */
export function sealRawFrame(target: Buffer, at: number, lba: number, seed: number): void {
  target.writeUInt32LE(lba % 0x1_0000_0000, at + 4);
  target.writeUInt16LE(Math.floor(lba / 0x1_0000_0000), at + 8);
  target[at + 10] = 1;
  target[at + 11] = 0;
  target.writeUInt32LE(BLOCK_BYTES, at + 12);
  target.writeUInt32LE(crc32(sealedPart(target, at), seed), at);
}

/** What the checksum of the raw frame at `at` covers. */
export function sealedPart(bytes: Buffer, at: number): Buffer {
  return bytes.subarray(at + 4, at + RAW_FRAME_BYTES);
}

/**
 * True where a raw frame of block `lba`, sealed with `seed`, stands intact at `at`. A caller that looks at the same
 * place again and again gives its sealedPart.
 */
export function isIntactRawFrame(
  bytes: Buffer,
  at: number,
  lba: number,
  seed: number,
  sealed: Buffer = sealedPart(bytes, at),
): boolean {
  return (
    bytes.readUInt32LE(at) === crc32(sealed, seed) &&
    bytes.readUInt32LE(at + 4) === lba % 0x1_0000_0000 &&
    bytes.readUInt16LE(at + 8) === Math.floor(lba / 0x1_0000_0000) &&
    bytes[at + 10] === 1 &&
    bytes[at + 11] === 0 &&
    bytes.readUInt32LE(at + 12) === BLOCK_BYTES
  );
}

/**
 * Gives an intact raw frame another place: swaps the seed of its checksum without reading its payload. CRC-32 is linear,
 * so for a fixed length the checksums under two seeds differ by a function of the seeds' difference alone.
 */
export function resealRawFrame(bytes: Buffer, at: number, oldSeed: number, newSeed: number): void {
  const difference = oldSeed ^ newSeed;
  const change =
    SEED_CHANGE[difference & 0xff] ^
    SEED_CHANGE[0x100 | ((difference >>> 8) & 0xff)] ^
    SEED_CHANGE[0x200 | ((difference >>> 16) & 0xff)] ^
    SEED_CHANGE[0x300 | (difference >>> 24)];
  bytes.writeUInt32LE((bytes.readUInt32LE(at) ^ change) >>> 0, at);
}

/** What each byte of a seed's difference does to the checksum of a raw frame: 4 × 256 entries. */
const SEED_CHANGE = makeSeedChange();

function makeSeedChange(): Uint32Array {
  const zeroes = Buffer.alloc(RAW_FRAME_BYTES - 4);
  const table = new Uint32Array(1024);
  const unchanged = crc32(zeroes, 0);
  for (let index = 0; index < 1024; index += 1) {
    const difference = ((index & 0xff) << ((index >>> 8) * 8)) >>> 0;
    table[index] = crc32(zeroes, difference) ^ unchanged;
  }
  return table;
}
