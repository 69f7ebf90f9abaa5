/** Segment heads: a round trip over arbitrary extents, and every rule that a reader relies on. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { AssertionError } from "../../../src/base/assert.ts";
import { isKind } from "../../../src/base/errors.ts";
import {
  decodeSegmentHead,
  encodeSegmentHead,
  EXTENT_ENCODED,
  EXTENT_RAW,
  EXTENT_ZERO,
  MAX_VOLUME_BLOCKS,
  SegmentExtents,
  segmentDataOffset,
  segmentHeadBytes,
  type SegmentHead,
} from "../../../src/volume/format/segment.ts";
import { peekEnvelope } from "../../../src/volume/format/envelope.ts";
import type { Epoch, SegmentSeq } from "../../../src/volume/identity.ts";
import {
  bytes16,
  dataHead,
  extentRows,
  fenceHead,
  header,
  NONCE,
  number53,
  startHead,
  UID,
  withSection,
} from "./samples.ts";

const identity = { uid: UID, epoch: 3, sequence: 4, nonce: NONCE };

type Piece = { kind: number; lba: number; blockCount: number; units: number };
const piece: fc.Arbitrary<Piece> = fc.record({
  kind: fc.constantFrom(EXTENT_RAW, EXTENT_ZERO, EXTENT_ENCODED),
  lba: fc.nat(2 ** 31 - 1).map((low) => low * 4),
  blockCount: fc.integer({ min: 1, max: 16 }),
  units: fc.integer({ min: 2, max: 257 }),
});

/** Extents with their frames one after another, as a writer lays them. */
function layOut(pieces: Piece[]): { extents: SegmentExtents; dataLength: number } {
  const extents = new SegmentExtents(1);
  const begin = segmentHeadBytes(pieces.length);
  let offset = begin;
  for (const { kind, lba, blockCount, units } of pieces) {
    const length = kind === EXTENT_ZERO ? 0 : kind === EXTENT_RAW ? blockCount * 4112 : units * 16;
    extents.push(lba, blockCount, kind, kind === EXTENT_ENCODED ? 2 : 0, length === 0 ? 0 : offset, length);
    offset += length;
  }
  return { extents, dataLength: offset - begin };
}

test("decoding an encoded data head gives the same head", () => {
  const head = fc.record({ timeMs: number53, journalId: bytes16, journalEnd: number53 });
  fc.assert(
    fc.property(header, head, fc.array(piece, { maxLength: 150 }), (fields, times, pieces) => {
      const written: SegmentHead = { type: "data", everWritten: false, ...times, ...layOut(pieces) };
      const at = { ...fields, sequence: fields.sequence + (fields.sequence === 0 ? 1 : 0) };
      const bytes = encodeSegmentHead(at, written);
      const { extents, ...decoded } = decodeSegmentHead(bytes, at);
      const { extents: expected, ...rest } = written;
      const absent = { parent: undefined, baseCheckpoint: undefined };
      assert.deepEqual(decoded, { ...rest, ...absent, ...at, dataOffset: bytes.length });
      assert.deepEqual(extentRows(extents), extentRows(expected));
    }),
  );
});

test("decoding an encoded START gives the same parent and base, or none", () => {
  const pair = fc.record({ epoch: fc.integer({ min: 1 }), number: number53 });
  fc.assert(
    fc.property(fc.option(pair), fc.option(pair), fc.boolean(), (parent, base, everWritten) => {
      const written: SegmentHead = {
        ...startHead,
        parent: parent === null ? undefined : { epoch: parent.epoch as Epoch, sequence: parent.number as SegmentSeq },
        baseCheckpoint: base === null ? undefined : { epoch: base.epoch as Epoch, number: base.number },
        everWritten,
      };
      const decoded = decodeSegmentHead(encodeSegmentHead({ ...identity, sequence: 0 }, written), { sequence: 0 });
      assert.deepEqual(decoded.parent, written.parent);
      assert.deepEqual(decoded.baseCheckpoint, written.baseCheckpoint);
      assert.equal(decoded.everWritten, everWritten);
      assert.equal(decoded.type, "start");
    }),
  );
});

test("a FENCE may stand at any sequence, also where START would", () => {
  for (const sequence of [0, 1, 2 ** 40]) {
    assert.equal(
      decodeSegmentHead(encodeSegmentHead({ ...identity, sequence }, fenceHead), { sequence }).type,
      "fence",
    );
  }
});

test("the head's length is known before it is written and from its first 64 bytes", () => {
  const bytes = encodeSegmentHead(identity, dataHead);
  assert.equal(bytes.length, segmentHeadBytes(3));
  assert.equal(bytes.length, segmentDataOffset(peekEnvelope(bytes).sectionLength));
  assert.equal(bytes.length % 16, 0);
});

test("extents grow past their capacity", () => {
  const extents = new SegmentExtents(0);
  for (let index = 0; index < 1000; index += 1) extents.push(index, 1, EXTENT_ZERO, 0, 0, 0);
  assert.equal(extents.count, 1000);
  assert.equal(extents.lba[999], 999);
});

const at = (field: number): number => 96 + field;
const refused: { what: string; change: (section: Buffer) => Buffer | void; message: RegExp }[] = [
  { what: "compacted", change: (section) => void section.writeUInt8(1, 0), message: /cannot replay.*newer s3block/ },
  { what: "an unknown type", change: (section) => void section.writeUInt8(4, 0), message: /unknown type/ },
  { what: "compressed as a whole", change: (section) => void section.writeUInt8(1, 1), message: /newer s3block/ },
  { what: "sealed", change: (section) => void section.writeUInt8(1, 2), message: /newer s3block/ },
  { what: "with reserved bytes set", change: (section) => void section.writeUInt8(1, 3), message: /reserved/ },
  { what: "with more extents than it holds", change: (s) => void s.writeUInt32LE(0xffff_ffff, 4), message: /counts/ },
  { what: "with a parent", change: (section) => void section.writeUInt8(1, 40), message: /only START/ },
  { what: "with a base checkpoint", change: (section) => void section.writeUInt8(1, 56), message: /only START/ },
  {
    what: "with a parent sequence alone",
    change: (section) => void section.writeUInt8(1, 48),
    message: /without its epoch/,
  },
  {
    what: "with another data offset",
    change: (section) => void section.writeUInt32LE(16, 72),
    message: /behind its head/,
  },
  { what: "with too much data", change: (s) => void s.writeUInt32LE(64 * 1024 * 1024, 76), message: /too large/ },
  {
    what: "with unaligned data",
    change: (s) => void s.writeUInt32LE(dataHead.dataLength - 1, 76),
    message: /multiple/,
  },
  { what: "with everWritten 2", change: (section) => void section.writeUInt8(2, 80), message: /invalid flag/ },
  { what: "with everWritten", change: (section) => void section.writeUInt8(1, 80), message: /only START/ },
  { what: "with reserved bytes at its end", change: (section) => void section.writeUInt8(1, 95), message: /reserved/ },
  {
    what: "with an extent behind the largest volume",
    change: (s) => void s.writeUInt32LE(4, at(8)),
    message: /any volume/,
  },
  { what: "with an extent of no blocks", change: (s) => void s.writeUInt32LE(0, at(8)), message: /any volume/ },
  { what: "with an extent of unknown kind", change: (s) => void s.writeUInt8(3, at(12)), message: /unknown kind/ },
  { what: "with a codec on raw frames", change: (s) => void s.writeUInt8(1, at(13)), message: /unknown codec/ },
  { what: "with reserved bytes in an extent", change: (s) => void s.writeUInt8(1, at(14)), message: /reserved/ },
  { what: "with an extent in its own head", change: (s) => void s.writeUInt32LE(16, at(16)), message: /outside/ },
  { what: "with an unaligned extent", change: (s) => void s.writeUInt8(s[at(16)] + 1, at(16)), message: /aligned/ },
  { what: "with a short raw extent", change: (s) => void s.writeUInt32LE(4112, at(20)), message: /fit its blocks/ },
  { what: "with data under zeroes", change: (s) => void s.writeUInt32LE(256, at(24 + 16)), message: /zero extent/ },
  { what: "with too many blocks in a frame", change: (s) => void s.writeUInt32LE(17, at(48 + 8)), message: /fit its/ },
  { what: "with an empty encoded frame", change: (s) => void s.writeUInt32LE(16, at(48 + 20)), message: /fit its/ },
  { what: "cut short", change: (section) => section.subarray(0, 95), message: /too short/ },
];

for (const { what, change, message } of refused) {
  test(`a segment ${what} is refused`, () => {
    const bytes = withSection(encodeSegmentHead(identity, dataHead), change);
    assert.throws(
      () => decodeSegmentHead(bytes, identity),
      (error) => isKind(error, "corrupt") && message.test(error.message),
    );
  });
}

test("FENCE and START with data, a START that is not first and data that is, are refused", () => {
  const one = (section: Buffer): void => void section.writeUInt32LE(16, 76);
  const fence = withSection(encodeSegmentHead(identity, fenceHead), one);
  assert.throws(() => decodeSegmentHead(fence, {}), /fence holds data/);
  const journal = withSection(encodeSegmentHead(identity, fenceHead), (section) => void section.writeUInt8(1, 16));
  assert.throws(() => decodeSegmentHead(journal, {}), /names a journal/);
  const start = withSection(encodeSegmentHead(identity, fenceHead), (section) => void section.writeUInt8(3, 0));
  assert.throws(() => decodeSegmentHead(start, {}), /sequence 0/);
  const first = withSection(
    encodeSegmentHead({ ...identity, sequence: 0 }, fenceHead),
    (section) => void section.writeUInt8(0, 0),
  );
  assert.throws(() => decodeSegmentHead(first, {}), /START and FENCE/);
});

test("bytes set between head and data, and a head that is not all there, are refused", () => {
  const bytes = encodeSegmentHead(identity, dataHead);
  assert.notEqual((64 + 96 + 3 * 24) % 16, 0, "this head has padding");
  assert.throws(() => decodeSegmentHead(bytes.subarray(0, -1), identity), /ends within its head/);
  bytes[bytes.length - 1] = 1;
  assert.throws(() => decodeSegmentHead(bytes, identity), /reserved/);
});

test("a writer cannot write what a reader refuses", () => {
  const extents = new SegmentExtents();
  extents.push(MAX_VOLUME_BLOCKS, 1, EXTENT_ZERO, 0, 0, 0);
  assert.throws(() => encodeSegmentHead(identity, { ...dataHead, extents, dataLength: 0 }), AssertionError);
  assert.throws(() => encodeSegmentHead(identity, startHead), AssertionError);
  assert.throws(() => encodeSegmentHead({ ...identity, sequence: 0 }, dataHead), AssertionError);
});
