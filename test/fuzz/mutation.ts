/**
 * Bytes made worse, by seed: what storage, networks and hostile peers do to an encoding, and what finds the edges of a
 * decoder. Nothing here knows a format; checksums are mended by the targets. An input is never changed in place, and a
 * result is never longer than MAX_INPUT_BYTES.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";

export const MAX_INPUT_BYTES = 1024 * 1024;

/** Values at which lengths, counts and offsets break: around zero, signs, widths, 2^40, and the 53 bits of a number. */
const EDGES: readonly bigint[] = [
  0n,
  1n,
  2n,
  15n,
  16n,
  17n,
  0x7fn,
  0x80n,
  0xffn,
  0x100n,
  0xfffn,
  0x1000n,
  0x7fffn,
  0x8000n,
  0xffffn,
  0x10000n,
  0x3f_ffffn,
  0x40_0000n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_fff0n,
  0xffff_ffffn,
  0x1_0000_0000n,
  0x3_ffff_ffffn,
  0x4_0000_0000n,
  0x100_0000_0000n,
  0x1f_ffff_ffff_ffffn,
  0x20_0000_0000_0000n,
  0x20_0000_0000_0001n,
  0x7fff_ffff_ffff_ffffn,
  0x8000_0000_0000_0000n,
  0xffff_ffff_ffff_f000n,
  0xffff_ffff_ffff_ffffn,
];

type Mutation = (bytes: Buffer, random: SeededRandom, others: readonly Buffer[]) => Buffer;

const mutations: readonly Mutation[] = [
  flipBit,
  flipBit,
  setByte,
  setEdge,
  setEdge,
  nudgeNumber,
  truncate,
  extend,
  removeRange,
  insertRange,
  duplicateRange,
  swapRanges,
  overwriteRange,
  splice,
];

/** One to five mutations of `bytes`; `others` are further inputs of the target to splice with. */
export function mutated(bytes: Buffer, random: SeededRandom, others: readonly Buffer[]): Buffer {
  let result: Buffer = Buffer.from(bytes);
  const count = 1 + (random.below(2) === 0 ? 0 : random.below(5));
  for (let turn = 0; turn < count; turn += 1)
    result = mutations[random.below(mutations.length)](result, random, others);
  return result.length > MAX_INPUT_BYTES ? result.subarray(0, MAX_INPUT_BYTES) : result;
}

/** Bytes of no meaning: of any kind, of few values, or of one; short ones are the most frequent. */
export function arbitrary(random: SeededRandom, limitBytes = 4096): Buffer {
  const length = Math.min(random.below(limitBytes + 1), 1 << random.below(13));
  const kind = random.below(4);
  if (kind === 0) return Buffer.alloc(length, random.below(256));
  const bytes = random.bytes(length);
  if (kind === 1) for (let at = 0; at < length; at += 1) bytes[at] &= random.below(256);
  return bytes;
}

function flipBit(bytes: Buffer, random: SeededRandom): Buffer {
  if (bytes.length > 0) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
  return bytes;
}

function setByte(bytes: Buffer, random: SeededRandom): Buffer {
  if (bytes.length > 0) bytes[random.below(bytes.length)] = random.below(256);
  return bytes;
}

/** A number of 1 to 8 bytes, little- or big-endian, set to an edge or to the length of the input. */
function setEdge(bytes: Buffer, random: SeededRandom): Buffer {
  const width = 1 << random.below(4);
  if (bytes.length < width) return bytes;
  const value =
    random.below(8) === 0 ? BigInt(bytes.length + random.below(33) - 16) : EDGES[random.below(EDGES.length)];
  writeNumber(bytes, position(bytes.length - width, random), width, value, random.below(3) === 0);
  return bytes;
}

/** A number of 1 to 8 bytes that is off by a little. */
function nudgeNumber(bytes: Buffer, random: SeededRandom): Buffer {
  const width = 1 << random.below(4);
  if (bytes.length < width) return bytes;
  const at = position(bytes.length - width, random);
  const isBigEndian = random.below(3) === 0;
  let value = 0n;
  for (let index = 0; index < width; index += 1) {
    value |= BigInt(bytes[at + index]) << BigInt(8 * (isBigEndian ? width - 1 - index : index));
  }
  writeNumber(bytes, at, width, value + BigInt(random.below(33) - 16), isBigEndian);
  return bytes;
}

function writeNumber(bytes: Buffer, at: number, width: number, value: bigint, isBigEndian: boolean): void {
  const wrapped = BigInt.asUintN(8 * width, value);
  for (let index = 0; index < width; index += 1) {
    bytes[at + index] = Number((wrapped >> BigInt(8 * (isBigEndian ? width - 1 - index : index))) & 0xffn);
  }
}

/** Mostly where fields stand: at multiples of four. */
function position(limit: number, random: SeededRandom): number {
  const at = random.below(limit + 1);
  return random.below(4) === 0 ? at : at - (at % 4);
}

function truncate(bytes: Buffer, random: SeededRandom): Buffer {
  return bytes.subarray(0, random.below(bytes.length + 1));
}

function extend(bytes: Buffer, random: SeededRandom): Buffer {
  return Buffer.concat([bytes, arbitrary(random, 256)]);
}

function rangeOf(bytes: Buffer, random: SeededRandom): { from: number; to: number } {
  const from = position(bytes.length, random);
  return { from, to: Math.min(bytes.length, from + random.below(1 << random.below(10)) + 1) };
}

function removeRange(bytes: Buffer, random: SeededRandom): Buffer {
  const { from, to } = rangeOf(bytes, random);
  return Buffer.concat([bytes.subarray(0, from), bytes.subarray(to)]);
}

function insertRange(bytes: Buffer, random: SeededRandom): Buffer {
  const { from } = rangeOf(bytes, random);
  return Buffer.concat([bytes.subarray(0, from), arbitrary(random, 64), bytes.subarray(from)]);
}

function duplicateRange(bytes: Buffer, random: SeededRandom): Buffer {
  const { from, to } = rangeOf(bytes, random);
  return Buffer.concat([bytes.subarray(0, to), bytes.subarray(from, to), bytes.subarray(to)]);
}

/** Two ranges of one length change places: fields, rows, records. */
function swapRanges(bytes: Buffer, random: SeededRandom): Buffer {
  const length = [4, 8, 12, 16, 24][random.below(5)];
  if (bytes.length < 2 * length) return bytes;
  const first = position(bytes.length - length, random);
  const second = position(bytes.length - length, random);
  const kept = Buffer.from(bytes.subarray(first, first + length));
  bytes.copyWithin(first, second, second + length);
  kept.copy(bytes, second);
  return bytes;
}

function overwriteRange(bytes: Buffer, random: SeededRandom): Buffer {
  const { from, to } = rangeOf(bytes, random);
  if (random.below(2) === 0) bytes.fill(random.below(2) === 0 ? 0 : 0xff, from, to);
  else random.bytes(to - from).copy(bytes, from);
  return bytes;
}

/** The head of one input and the tail of another. */
function splice(bytes: Buffer, random: SeededRandom, others: readonly Buffer[]): Buffer {
  if (others.length === 0) return bytes;
  const other = others[random.below(others.length)];
  const from =
    random.below(2) === 0 ? position(Math.min(bytes.length, other.length), random) : random.below(other.length);
  return Buffer.concat([bytes.subarray(0, position(bytes.length, random)), other.subarray(from)]);
}
