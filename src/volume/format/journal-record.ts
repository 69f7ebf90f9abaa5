/**
 * The local journal's structures: file header and record header. Pure, no I/O; little-endian.
 *
 * A journal is a row of files of JOURNAL_FILE_BYTES, numbered from 1. A position is a byte of that row:
 * file number × JOURNAL_FILE_BYTES + offset; it is never used twice. Records never cross a file's end; the scan goes on
 * in the next file when it meets a header of zeroes or the end.
 *
 * File header (one page, FILE_HEADER_BYTES)
 *   offset size field
 *        0    4 magic "S3BJ"
 *        4    2 version, 1
 *        6    2 zero
 *        8   16 volume uid
 *       24   16 journal id
 *       40    8 file number
 *       48    8 sequence of the first record of this file
 *       56    4 chain: checksum of the record before it (0 where the journal begins here)
 *       60    1 1 where the journal begins here: nothing before this file is to be read
 *       61    3 zero
 *       64    4 size of every file of this journal in bytes
 *       68    4 crc32 of bytes 0 … 68
 *       72      zeroes up to 4096
 *
 * Record header (RECORD_HEADER_BYTES), then extents (RECORD_EXTENT_BYTES each), zeroes up to a multiple of 16, then the
 * raw frames (frame.ts) of all data extents in order
 *        0    4 crc32 of bytes 4 … end of the extents, continued from the checksum of the record before (the chain)
 *        4    4 magic "S3JR"
 *        8    8 sequence, one more than the record before
 *       16    8 epoch under which it was written, never less than the record before
 *       24    4 length of the record in bytes, a multiple of 16
 *       28    2 extent count, 1 to 1024
 *       30    2 zero
 * Extent: 0 8 lba | 8 4 block count | 12 1 kind (0 data, 1 zeroes) | 13 3 zero
 *
 * Commit mark (COMMIT_MARK_BYTES): the last bytes of the last page of a write of records. The write of the next records
 * begins with the page in which the records end, so that the mark goes then.
 *        0    4 seed of a frame that stood in the mark's place, xor both halves of the sequence
 *        4    4 magic "S3JC"
 *        8    8 sequence of the last record written
 */
import { crc32 } from "../../base/checksum.ts";
import { checkZero, corrupt, readU64 } from "./fields.ts";
import { RAW_FRAME_BYTES } from "./frame.ts";

export const JOURNAL_FILE_BYTES = 64 * 1024 * 1024;
export const FILE_HEADER_BYTES = 4096;
export const RECORD_HEADER_BYTES = 32;
export const RECORD_EXTENT_BYTES = 16;
export const COMMIT_MARK_BYTES = 16;
const FILE_MAGIC = 0x4a423353;
const RECORD_MAGIC = 0x524a3353;
const MARK_MAGIC = 0x434a3353;
const VERSION = 1;
const MAX_EXTENTS = 1024;
const MAX_LBA = 2 ** 34;

export const EXTENT_DATA = 0;
export const EXTENT_ZERO = 1;

export interface JournalFileHeader {
  uid: string;
  journalId: Buffer;
  fileNumber: number;
  firstSequence: number;
  chain: number;
  begins: boolean;
  fileBytes: number;
}

export function encodeFileHeader(header: JournalFileHeader): Buffer {
  const bytes = Buffer.alloc(FILE_HEADER_BYTES);
  bytes.writeUInt32LE(FILE_MAGIC, 0);
  bytes.writeUInt16LE(VERSION, 4);
  bytes.write(header.uid, 8, 16, "hex");
  header.journalId.copy(bytes, 24, 0, 16);
  bytes.writeBigUInt64LE(BigInt(header.fileNumber), 40);
  bytes.writeBigUInt64LE(BigInt(header.firstSequence), 48);
  bytes.writeUInt32LE(header.chain, 56);
  bytes[60] = header.begins ? 1 : 0;
  bytes.writeUInt32LE(header.fileBytes, 64);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, 68)), 68);
  return bytes;
}

/**
 * The header, or undefined where the page holds none that is intact (a torn or never used file). One that is intact and
 * cannot be is "corrupt": to take it for none would drop the records behind it. What follows its 72 bytes is not read.
 */
export function decodeFileHeader(bytes: Buffer): JournalFileHeader | undefined {
  if (bytes.length < FILE_HEADER_BYTES || bytes.readUInt32LE(0) !== FILE_MAGIC) return undefined;
  if (bytes.readUInt32LE(68) !== crc32(bytes.subarray(0, 68))) return undefined;
  if (bytes.readUInt16LE(4) !== VERSION) {
    throw corrupt("the journal was written by a newer s3block: start that version on this node", {
      version: bytes.readUInt16LE(4),
    });
  }
  const fileBytes = bytes.readUInt32LE(64);
  checkZero(bytes, 6, 8);
  checkZero(bytes, 61, 64);
  if (bytes[60] > 1 || fileBytes % FILE_HEADER_BYTES !== 0 || fileBytes <= FILE_HEADER_BYTES) {
    throw corrupt("header of a journal file is invalid", { begins: bytes[60], fileBytes });
  }
  return {
    uid: bytes.toString("hex", 8, 24),
    journalId: Buffer.from(bytes.subarray(24, 40)),
    fileNumber: readU64(bytes, 40),
    firstSequence: readU64(bytes, 48),
    chain: bytes.readUInt32LE(56),
    begins: bytes[60] === 1,
    fileBytes,
  };
}

/** Bytes of a record's head (header and extents, padded), before its frames. */
export function recordHeadBytes(extentCount: number): number {
  return (RECORD_HEADER_BYTES + extentCount * RECORD_EXTENT_BYTES + 15) & ~15;
}

/** What the head of a record with one extent says; `chain` is the checksum of the record before it. */
export interface RecordHead {
  sequence: number;
  epoch: number;
  lba: number;
  blockCount: number;
  kind: number;
  chain: number;
}

/**
 * Writes the head of a record with one extent at `at` of `target` and returns its checksum, the next record's chain.
 * `blockCount` blocks from `lba`; frames follow where `kind` is EXTENT_DATA.
 */
export function encodeRecordHead(target: Buffer, at: number, record: RecordHead): number {
  const head = recordHeadBytes(1);
  const data = record.kind === EXTENT_DATA ? record.blockCount * RAW_FRAME_BYTES : 0;
  target.writeUInt32LE(RECORD_MAGIC, at + 4);
  writeUint53(target, record.sequence, at + 8);
  writeUint53(target, record.epoch, at + 16);
  target.writeUInt32LE(head + data, at + 24);
  target.writeUInt32LE(1, at + 28);
  writeUint53(target, record.lba, at + 32);
  target.writeUInt32LE(record.blockCount, at + 40);
  target.writeUInt32LE(record.kind, at + 44);
  const checksum = crc32(target.subarray(at + 4, at + head), record.chain);
  target.writeUInt32LE(checksum, at);
  return checksum;
}

/** One decoded record head; `extents` are few (one for a plain request). */
export interface JournalRecord {
  sequence: number;
  epoch: number;
  lengthBytes: number;
  headBytes: number;
  checksum: number;
  extents: { lba: number; blockCount: number; kind: number }[];
}

/**
 * Decodes the record head at the start of `bytes`; undefined where there is none that is intact and continues `chain`.
 * Frames are not looked at.
 */
export function decodeRecordHead(bytes: Buffer, chain: number): JournalRecord | undefined {
  if (bytes.length < RECORD_HEADER_BYTES || bytes.readUInt32LE(4) !== RECORD_MAGIC) return undefined;
  const extentCount = bytes.readUInt16LE(28);
  if (extentCount === 0 || extentCount > MAX_EXTENTS || bytes.readUInt16LE(30) !== 0) return undefined;
  const headBytes = recordHeadBytes(extentCount);
  if (bytes.length < headBytes) return undefined;
  const checksum = bytes.readUInt32LE(0);
  if (crc32(bytes.subarray(4, headBytes), chain) !== checksum) return undefined;
  const record: JournalRecord = {
    sequence: Number(bytes.readBigUInt64LE(8)),
    epoch: Number(bytes.readBigUInt64LE(16)),
    lengthBytes: bytes.readUInt32LE(24),
    headBytes,
    checksum,
    extents: [],
  };
  if (!Number.isSafeInteger(record.sequence) || !Number.isSafeInteger(record.epoch)) return undefined;
  let expectedBytes = headBytes;
  for (let index = 0; index < extentCount; index += 1) {
    const at = RECORD_HEADER_BYTES + index * RECORD_EXTENT_BYTES;
    const extent = {
      lba: Number(bytes.readBigUInt64LE(at)),
      blockCount: bytes.readUInt32LE(at + 8),
      kind: bytes.readUInt32LE(at + 12),
    };
    if (extent.kind > EXTENT_ZERO || extent.blockCount === 0 || extent.lba + extent.blockCount > MAX_LBA)
      return undefined;
    if (extent.kind === EXTENT_DATA) expectedBytes += extent.blockCount * RAW_FRAME_BYTES;
    record.extents.push(extent);
  }
  return expectedBytes === record.lengthBytes ? record : undefined;
}

/** Writes the mark of a commit up to record `sequence`; `seed` is journalFrameSeed of the mark's own position. */
export function writeCommitMark(target: Buffer, at: number, seed: number, sequence: number): void {
  target.writeUInt32LE((seed ^ foldedSequence(sequence)) >>> 0, at);
  target.writeUInt32LE(MARK_MAGIC, at + 4);
  writeUint53(target, sequence, at + 8);
}

/** The sequence that the mark at `at` names; undefined where no mark stands there that was written for this place. */
export function readCommitMark(bytes: Buffer, at: number, seed: number): number | undefined {
  if (bytes.readUInt32LE(at + 4) !== MARK_MAGIC) return undefined;
  const sequence = Number(bytes.readBigUInt64LE(at + 8));
  if (!Number.isSafeInteger(sequence)) return undefined;
  return bytes.readUInt32LE(at) === (seed ^ foldedSequence(sequence)) >>> 0 ? sequence : undefined;
}

function foldedSequence(sequence: number): number {
  return (sequence % 0x1_0000_0000) ^ Math.floor(sequence / 0x1_0000_0000);
}

function writeUint53(target: Buffer, value: number, at: number): void {
  target.writeUInt32LE(value % 0x1_0000_0000, at);
  target.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}
