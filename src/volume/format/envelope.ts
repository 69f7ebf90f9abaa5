/**
 * The envelope that opens every object (docs/format.md, "Envelope"): who wrote what for which volume.
 *
 *    0 u32 magic "S3BK"   4 u16 version   6 u8 kind   7 u8 flags = 0   8 16B volume uid   24 u64 epoch
 *   32 u64 sequence   40 16B nonce   56 u32 section length   60 u32 CRC-32 of bytes 0 to 60, then of the section
 *
 * The 64 bytes are unique to the operation that wrote them (nonce), which the store relies on to recognize its own
 * write. A reader states what it expects: an object under a key that is not its own is corruption, never data.
 */
import { assert } from "../../base/assert.ts";
import { crc32 } from "../../base/checksum.ts";
import type { VolumeUid } from "../identity.ts";
import { checkZero, corrupt, readU64, readUid, writeU64, writeUid, writtenByNewer } from "./fields.ts";

/** Equals IDENTITY_BYTES of store/object-store.ts. */
export const ENVELOPE_BYTES = 64;
export const NONCE_BYTES = 16;
const MAGIC = 0x4b42_3353;
const VERSION = 1;
const CHECKED_BYTES = 60;

/** In the order of their numbers, which start at 1. */
const kinds = [
  "meta",
  "epoch",
  "segment",
  "map",
  "checkpoint",
  "publication",
  "location",
  "snapshot",
  "pin",
  "gc-intent",
  "node",
  "tombstone",
  "confirmation",
  "removal",
] as const;
export type ObjectKind = (typeof kinds)[number];

export interface EnvelopeHeader {
  kind: ObjectKind;
  uid: VolumeUid;
  epoch: number;
  sequence: number;
  /** 16 random bytes, drawn anew for every write. */
  nonce: Buffer;
}

export interface PeekedEnvelope extends EnvelopeHeader {
  /** Bytes that follow the envelope before the object's own payload. */
  sectionLength: number;
}

export interface Envelope extends EnvelopeHeader {
  /** A view of the bytes given to the decoder. */
  section: Buffer;
}

/** What the key says; a field left out is not compared. */
export interface ExpectedEnvelope {
  kind: ObjectKind;
  uid?: VolumeUid;
  epoch?: number;
  sequence?: number;
}

/** Envelope and section in one new buffer. */
export function encodeEnvelope(header: EnvelopeHeader, section: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(ENVELOPE_BYTES + section.length);
  bytes.set(section, ENVELOPE_BYTES);
  sealEnvelope(bytes, header, section.length);
  return bytes;
}

/** Writes the envelope into the first 64 bytes of `bytes`, over a section that stands behind it already. */
export function sealEnvelope(bytes: Buffer, header: EnvelopeHeader, sectionLength: number): void {
  assert(header.nonce.length === NONCE_BYTES, "a nonce is 16 bytes");
  assert(bytes.length >= ENVELOPE_BYTES + sectionLength, "the section must stand behind the envelope");
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt16LE(VERSION, 4);
  bytes[6] = kinds.indexOf(header.kind) + 1;
  bytes[7] = 0;
  writeUid(bytes, 8, header.uid);
  writeU64(bytes, 24, header.epoch);
  writeU64(bytes, 32, header.sequence);
  bytes.set(header.nonce, 40);
  bytes.writeUInt32LE(sectionLength, 56);
  bytes.writeUInt32LE(checksum(bytes, sectionLength), CHECKED_BYTES);
}

/**
 * Reads an envelope without its section and so without its checksum: to recognize one's own write, or to learn how
 * much to read. Needs 64 bytes; nothing but magic, version and kind is checked.
 */
export function peekEnvelope(bytes: Buffer): PeekedEnvelope {
  if (bytes.length < ENVELOPE_BYTES) throw corrupt("object is shorter than its envelope", { length: bytes.length });
  if (bytes.readUInt32LE(0) !== MAGIC) throw corrupt("object has no s3block envelope");
  const version = bytes.readUInt16LE(4);
  if (version > VERSION) throw writtenByNewer("object", { version });
  if (version < VERSION) throw corrupt("object has no valid format version", { version });
  const kind = kinds[bytes[6] - 1];
  if (kind === undefined) throw corrupt("object is of an unknown kind", { kind: bytes[6] });
  return {
    kind,
    uid: readUid(bytes, 8),
    epoch: readU64(bytes, 24),
    sequence: readU64(bytes, 32),
    nonce: Buffer.from(bytes.subarray(40, 40 + NONCE_BYTES)),
    sectionLength: bytes.readUInt32LE(56),
  };
}

/**
 * Verifies the checksum, then that the object is the one the key names. `bytes` may be longer than envelope and
 * section; the nonce is a copy, the section a view. Everything that does not hold is "corrupt".
 */
export function decodeEnvelope(bytes: Buffer, expected: ExpectedEnvelope): Envelope {
  const { sectionLength, ...header } = peekEnvelope(bytes);
  if (bytes.length < ENVELOPE_BYTES + sectionLength) {
    throw corrupt("object ends within its section", { length: bytes.length, sectionLength });
  }
  if (bytes.readUInt32LE(CHECKED_BYTES) !== checksum(bytes, sectionLength)) {
    throw corrupt("checksum of the object head does not match", { kind: header.kind });
  }
  checkZero(bytes, 7, 8);
  for (const field of ["kind", "uid", "epoch", "sequence"] as const) {
    if (expected[field] !== undefined && expected[field] !== header[field]) {
      throw corrupt(`object is not the one its key names: ${field} differs`, {
        expected: expected[field],
        found: header[field],
      });
    }
  }
  return { ...header, section: bytes.subarray(ENVELOPE_BYTES, ENVELOPE_BYTES + sectionLength) };
}

function checksum(bytes: Buffer, sectionLength: number): number {
  const head = crc32(bytes.subarray(0, CHECKED_BYTES));
  return crc32(bytes.subarray(ENVELOPE_BYTES, ENVELOPE_BYTES + sectionLength), head);
}
