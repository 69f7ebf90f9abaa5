/**
 * The head of a log object (docs/format.md, "Segment"): envelope, 96 fixed bytes, then the extents. The frames stand
 * from dataOffset on; frame.ts reads them.
 *
 *    0 u8 type (0 data, 1 compacted, 2 FENCE, 3 START)   1 u8 codec = 0   2 u8 sealed = 0   3 u8 0   4 u32 extents
 *    8 u64 time ms   16 16B journal id   32 u64 journal end   40 u64 parent epoch   48 u64 parent sequence
 *   56 u64 base checkpoint epoch   64 u64 base checkpoint number   72 u32 data offset   76 u32 data length
 *   80 u8 ever written   81 15B 0
 *   extent: 0 u64 lba   8 u32 blocks   12 u8 kind   13 u8 codec   14 u16 0   16 u32 offset   20 u32 stored length
 *
 * Invariants: an extent lies inside the largest volume, its frames inside the object; FENCE and START hold no data;
 * START is sequence 0, and only START has parent, base checkpoint and everWritten. Extents are columns, never objects.
 */
import { assert } from "../../base/assert.ts";
import { BLOCK_BYTES, type Epoch, MAX_VOLUME_BYTES, type SegmentSeq, type VolumeUid } from "../identity.ts";
import { decodeEnvelope, ENVELOPE_BYTES, type EnvelopeHeader, sealEnvelope } from "./envelope.ts";
import { checkZero, corrupt, readU64, writeU64, writtenByNewer } from "./fields.ts";
import { FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES, RAW_FRAME_BYTES } from "./frame.ts";

export const MAX_FRAME_BLOCKS = 16;
/** What the map can address: 2^22 units. */
export const MAX_SEGMENT_BYTES = 64 * 1024 * 1024;
/** Blocks of the largest volume. */
export const MAX_VOLUME_BLOCKS = MAX_VOLUME_BYTES / BLOCK_BYTES;
const FIXED_BYTES = 96;
const EXTENT_BYTES = 24;
const MAX_CODEC = 2;

const types = ["data", "compacted", "fence", "start"] as const;
export type SegmentType = "data" | "fence" | "start";

/** blockCount frames of one raw block each, one after another. */
export const EXTENT_RAW = 0;
/** No frames: the blocks read as zeroes. */
export const EXTENT_ZERO = 1;
/** One frame of up to 16 blocks. */
export const EXTENT_ENCODED = 2;

/** Growing columns; index 0 is the oldest write, and a later extent wins over an earlier one. */
export class SegmentExtents {
  count = 0;
  /** In blocks of 4096 bytes. */
  lba: Float64Array;
  blockCount: Uint32Array;
  /** EXTENT_RAW, EXTENT_ZERO or EXTENT_ENCODED. */
  kind: Uint8Array;
  codec: Uint8Array;
  /** From the start of the object, in bytes. */
  offset: Uint32Array;
  /** All stored bytes, frame headers and padding included. */
  storedLength: Uint32Array;

  constructor(capacity = 64) {
    this.lba = new Float64Array(capacity);
    this.blockCount = new Uint32Array(capacity);
    this.kind = new Uint8Array(capacity);
    this.codec = new Uint8Array(capacity);
    this.offset = new Uint32Array(capacity);
    this.storedLength = new Uint32Array(capacity);
  }

  /** Positional, because it runs for every write: see the columns for units. */
  push(lba: number, blockCount: number, kind: number, codec: number, offset: number, storedLength: number): void {
    if (this.count === this.lba.length) this.#grow();
    const index = this.count;
    this.lba[index] = lba;
    this.blockCount[index] = blockCount;
    this.kind[index] = kind;
    this.codec[index] = codec;
    this.offset[index] = offset;
    this.storedLength[index] = storedLength;
    this.count = index + 1;
  }

  #grow(): void {
    const capacity = Math.max(64, this.lba.length * 2);
    const widen = <T extends { set(from: T): void }>(from: T, to: T): T => {
      to.set(from);
      return to;
    };
    this.lba = widen(this.lba, new Float64Array(capacity));
    this.blockCount = widen(this.blockCount, new Uint32Array(capacity));
    this.kind = widen(this.kind, new Uint8Array(capacity));
    this.codec = widen(this.codec, new Uint8Array(capacity));
    this.offset = widen(this.offset, new Uint32Array(capacity));
    this.storedLength = widen(this.storedLength, new Uint32Array(capacity));
  }
}

export interface SegmentHead {
  type: SegmentType;
  timeMs: number;
  /** 16 bytes; all zero for a FENCE. */
  journalId: Buffer;
  /** Sequence of the last journal record contained, inclusive; START: what it inherits; FENCE: 0. */
  journalEnd: number;
  /** START: the last log object of the epoch before; undefined for the first of the volume. */
  parent?: { epoch: Epoch; sequence: SegmentSeq } | undefined;
  /** START: where replay begins; undefined where it begins with the log. */
  baseCheckpoint?: { epoch: Epoch; number: number } | undefined;
  /** START: whether a block had been written before. Else false. */
  everWritten: boolean;
  extents: SegmentExtents;
  /** Bytes of the object behind dataOffset; a multiple of 16. */
  dataLength: number;
}

export interface DecodedSegmentHead extends SegmentHead {
  uid: VolumeUid;
  epoch: Epoch;
  sequence: SegmentSeq;
  nonce: Buffer;
  /** Where the first frame begins. */
  dataOffset: number;
}

/** Bytes of the padded head, which is where the data begins. */
export function segmentHeadBytes(extentCount: number): number {
  return segmentDataOffset(FIXED_BYTES + extentCount * EXTENT_BYTES);
}

/** The same, from the section length that peekEnvelope tells: how much of an object is its head. */
export function segmentDataOffset(sectionLength: number): number {
  return Math.ceil((ENVELOPE_BYTES + sectionLength) / FRAME_ALIGN_BYTES) * FRAME_ALIGN_BYTES;
}

/** The whole head, padded to where the data begins. Offsets in `extents` must be final (segmentHeadBytes). */
export function encodeSegmentHead(header: Omit<EnvelopeHeader, "kind">, head: SegmentHead): Buffer {
  const { extents } = head;
  const dataOffset = segmentHeadBytes(extents.count);
  const bytes = Buffer.alloc(dataOffset);
  const section = bytes.subarray(ENVELOPE_BYTES);
  assert(head.journalId.length === 16, "a journal id is 16 bytes");
  section[0] = types.indexOf(head.type);
  section.writeUInt32LE(extents.count, 4);
  writeU64(section, 8, head.timeMs);
  section.set(head.journalId, 16);
  writeU64(section, 32, head.journalEnd);
  writeU64(section, 40, head.parent?.epoch ?? 0);
  writeU64(section, 48, head.parent?.sequence ?? 0);
  writeU64(section, 56, head.baseCheckpoint?.epoch ?? 0);
  writeU64(section, 64, head.baseCheckpoint?.number ?? 0);
  section.writeUInt32LE(dataOffset, 72);
  section.writeUInt32LE(head.dataLength, 76);
  section[80] = head.everWritten ? 1 : 0;
  for (let index = 0, at = FIXED_BYTES; index < extents.count; index += 1, at += EXTENT_BYTES) {
    writeU64(section, at, extents.lba[index]);
    section.writeUInt32LE(extents.blockCount[index], at + 8);
    section[at + 12] = extents.kind[index];
    section[at + 13] = extents.codec[index];
    section.writeUInt32LE(extents.offset[index], at + 16);
    section.writeUInt32LE(extents.storedLength[index], at + 20);
  }
  const problem = findHeadProblem(head, header.sequence) ?? findExtentProblem(extents, dataOffset, head.dataLength);
  assert(problem === undefined, `segment head cannot be written: ${problem}`);
  sealEnvelope(bytes, { ...header, kind: "segment" }, FIXED_BYTES + extents.count * EXTENT_BYTES);
  return bytes;
}

/** `bytes` hold at least the padded head (segmentDataOffset); what follows is not looked at. */
export function decodeSegmentHead(
  bytes: Buffer,
  expected: { uid?: VolumeUid; epoch?: number; sequence?: number },
): DecodedSegmentHead {
  const { section, uid, epoch, sequence, nonce } = decodeEnvelope(bytes, { ...expected, kind: "segment" });
  if (section.length < FIXED_BYTES) throw corrupt("segment head is too short", { length: section.length });
  const type = readType(section);
  const extentCount = section.readUInt32LE(4);
  if (section.length !== FIXED_BYTES + extentCount * EXTENT_BYTES) {
    throw corrupt("segment head does not hold the extents it counts", { extentCount, length: section.length });
  }
  checkZero(section, 81, FIXED_BYTES);
  const dataOffset = segmentHeadBytes(extentCount);
  if (section.readUInt32LE(72) !== dataOffset) throw corrupt("segment data does not begin behind its head");
  if (bytes.length < dataOffset) throw corrupt("segment ends within its head", { length: bytes.length });
  checkZero(bytes, ENVELOPE_BYTES + section.length, dataOffset);
  if (section[80] > 1) throw corrupt("segment head has an invalid flag", { everWritten: section[80] });
  const head: DecodedSegmentHead = {
    type,
    uid,
    epoch: epoch as Epoch,
    sequence: sequence as SegmentSeq,
    nonce,
    timeMs: readU64(section, 8),
    journalId: Buffer.from(section.subarray(16, 32)),
    journalEnd: readU64(section, 32),
    parent: readPair(section, 40, (first, second) => ({ epoch: first, sequence: second as SegmentSeq })),
    baseCheckpoint: readPair(section, 56, (first, second) => ({ epoch: first, number: second })),
    everWritten: section[80] === 1,
    extents: readExtents(section, extentCount),
    dataLength: section.readUInt32LE(76),
    dataOffset,
  };
  const problem = findHeadProblem(head, sequence) ?? findExtentProblem(head.extents, dataOffset, head.dataLength);
  if (problem !== undefined) throw corrupt(`segment head is invalid: ${problem}`, { epoch, sequence });
  return head;
}

function readType(section: Buffer): SegmentType {
  const type = types[section[0]];
  if (type === undefined) throw corrupt("segment is of an unknown type", { type: section[0] });
  if (type === "compacted") throw writtenByNewer("compacted segment (this version cannot replay it)");
  if (section[1] !== 0) throw writtenByNewer("compressed segment", { codec: section[1] });
  if (section[2] !== 0) throw writtenByNewer("encrypted segment", { sealed: section[2] });
  checkZero(section, 3, 4);
  return type;
}

function readPair<T>(section: Buffer, at: number, make: (epoch: Epoch, second: number) => T): T | undefined {
  const epoch = readU64(section, at);
  const second = readU64(section, at + 8);
  if (epoch === 0 && second !== 0) throw corrupt("segment head names a number without its epoch", { second });
  return epoch === 0 ? undefined : make(epoch as Epoch, second);
}

function readExtents(section: Buffer, count: number): SegmentExtents {
  const extents = new SegmentExtents(count);
  for (let index = 0, at = FIXED_BYTES; index < count; index += 1, at += EXTENT_BYTES) {
    checkZero(section, at + 14, at + 16);
    extents.push(
      readU64(section, at),
      section.readUInt32LE(at + 8),
      section[at + 12],
      section[at + 13],
      section.readUInt32LE(at + 16),
      section.readUInt32LE(at + 20),
    );
  }
  return extents;
}

function findHeadProblem(head: SegmentHead, sequence: number): string | undefined {
  if (head.type === "start") {
    if (sequence !== 0) return "START must be sequence 0";
  } else {
    if (head.parent !== undefined || head.baseCheckpoint !== undefined || head.everWritten) {
      return "only START has a parent, a base checkpoint and the ever-written flag";
    }
  }
  if (head.type === "data" && sequence === 0) return "sequence 0 is for START and FENCE";
  if (head.type !== "data" && (head.extents.count > 0 || head.dataLength > 0)) return `${head.type} holds data`;
  if (head.type === "fence" && (head.journalEnd !== 0 || head.journalId.some((byte) => byte !== 0))) {
    return "fence names a journal";
  }
  return undefined;
}

function findExtentProblem(extents: SegmentExtents, dataOffset: number, dataLength: number): string | undefined {
  const dataEnd = dataOffset + dataLength;
  if (dataLength % FRAME_ALIGN_BYTES !== 0) return "data length is no multiple of 16";
  if (dataEnd > MAX_SEGMENT_BYTES) return "segment is too large";
  for (let index = 0; index < extents.count; index += 1) {
    const kind = extents.kind[index];
    const blockCount = extents.blockCount[index];
    const offset = extents.offset[index];
    const storedLength = extents.storedLength[index];
    if (blockCount === 0 || extents.lba[index] + blockCount > MAX_VOLUME_BLOCKS) return "extent is outside any volume";
    if (kind > EXTENT_ENCODED) return "extent is of an unknown kind";
    if (extents.codec[index] > (kind === EXTENT_ENCODED ? MAX_CODEC : 0)) return "extent has an unknown codec";
    if (kind === EXTENT_ZERO) {
      if (offset !== 0 || storedLength !== 0) return "zero extent names data";
      continue;
    }
    if (offset % FRAME_ALIGN_BYTES !== 0 || storedLength % FRAME_ALIGN_BYTES !== 0) return "extent is not aligned";
    if (offset < dataOffset || offset + storedLength > dataEnd) return "extent is outside the segment's data";
    if (
      kind === EXTENT_RAW ? storedLength !== blockCount * RAW_FRAME_BYTES : !isEncodedLength(storedLength, blockCount)
    ) {
      return "extent's stored length does not fit its blocks";
    }
  }
  return undefined;
}

function isEncodedLength(storedLength: number, blockCount: number): boolean {
  const fits = storedLength > FRAME_HEADER_BYTES && storedLength <= FRAME_HEADER_BYTES + blockCount * BLOCK_BYTES;
  return fits && blockCount <= MAX_FRAME_BLOCKS;
}
