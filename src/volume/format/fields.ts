/**
 * Fields that the codecs of this directory share: 64-bit numbers narrowed to the 53 bits JavaScript counts exactly,
 * volume uids, zero checks. All little-endian. A value that cannot be is "corrupt" when read, a bug when written.
 */
import { assert } from "../../base/assert.ts";
import { type ErrorContext, OperationError } from "../../base/errors.ts";
import type { VolumeUid } from "../identity.ts";

const HIGH_LIMIT = 2 ** 21;

/** The uid of objects that belong to no volume. */
export const NO_VOLUME_UID = "0".repeat(32) as VolumeUid;

export function corrupt(message: string, context: ErrorContext = {}): OperationError {
  return new OperationError("corrupt", message, { context });
}

/** For a structure that is sound, but uses something this version does not know. */
export function writtenByNewer(what: string, context: ErrorContext = {}): OperationError {
  return corrupt(`${what} was written by a newer s3block; upgrade this one to read it`, context);
}

/** A u64 as a number; "corrupt" where it needs more than 53 bits. */
export function readU64(bytes: Buffer, offset: number): number {
  const high = bytes.readUInt32LE(offset + 4);
  if (high >= HIGH_LIMIT) throw corrupt("number is out of range", { offset });
  return high * 2 ** 32 + bytes.readUInt32LE(offset);
}

export function writeU64(bytes: Buffer, offset: number, value: number): void {
  if (!(Number.isSafeInteger(value) && value >= 0)) assert(false, `not an unsigned 53-bit number: ${value}`);
  bytes.writeUInt32LE(value % 2 ** 32, offset);
  bytes.writeUInt32LE(Math.floor(value / 2 ** 32), offset + 4);
}

export function readUid(bytes: Buffer, offset: number): VolumeUid {
  return bytes.toString("hex", offset, offset + 16) as VolumeUid;
}

export function writeUid(bytes: Buffer, offset: number, uid: VolumeUid): void {
  assert(bytes.write(uid, offset, 16, "hex") === 16 && uid.length === 32, "a volume uid is 32 hex digits");
}

/** Throws "corrupt" where a reserved byte in [start, end) is not zero. */
export function checkZero(bytes: Buffer, start: number, end: number): void {
  for (let index = start; index < end; index += 1) {
    if (bytes[index] !== 0) throw corrupt("reserved byte is not zero", { offset: index });
  }
}
