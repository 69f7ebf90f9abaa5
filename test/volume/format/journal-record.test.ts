/** The journal's headers behind right checksums: what cannot be is refused, and never taken for something near it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32 } from "../../../src/base/checksum.ts";
import { isKind } from "../../../src/base/errors.ts";
import {
  decodeFileHeader,
  decodeRecordHead,
  encodeFileHeader,
  encodeRecordHead,
  EXTENT_DATA,
  readCommitMark,
  recordHeadBytes,
  writeCommitMark,
} from "../../../src/volume/format/journal-record.ts";
import { JOURNAL_ID, UID } from "./samples.ts";

const header = {
  uid: UID,
  journalId: JOURNAL_ID,
  fileNumber: 2 ** 52,
  firstSequence: 7,
  chain: 5,
  begins: false,
  fileBytes: 8192,
};

function fileHeader(change: (bytes: Buffer) => void): Buffer {
  const bytes = encodeFileHeader(header);
  change(bytes);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, 68)), 68);
  return bytes;
}

test("a mark comes back at its own place alone, and any bit of it counts", () => {
  const mark = Buffer.alloc(48);
  const [seed, sequence] = [0xdead_beef, 2 ** 52 + 2 ** 31 + 7];
  writeCommitMark(mark, 16, seed, sequence);
  assert.equal(readCommitMark(mark, 16, seed), sequence);
  for (let bit = 0; bit < 32; bit += 1) assert.equal(readCommitMark(mark, 16, (seed ^ (1 << bit)) >>> 0), undefined);
  for (let bit = 128; bit < 256; bit += 1) {
    const changed = Buffer.from(mark);
    changed[bit >> 3] ^= 1 << (bit & 7);
    assert.equal(readCommitMark(changed, 16, seed), undefined, `bit ${bit}`);
  }
  assert.equal(readCommitMark(Buffer.alloc(16), 0, 0), undefined);
});

test("a file header comes back as it was written", () => {
  assert.deepEqual(decodeFileHeader(fileHeader(() => undefined)), header);
});

test("an intact file header that cannot be is corrupt, not absent: the records behind it were promised", () => {
  const changes: ((bytes: Buffer) => void)[] = [
    (bytes) => bytes.writeUInt32LE(0, 64),
    (bytes) => bytes.writeUInt32LE(4096, 64),
    (bytes) => bytes.writeUInt32LE(8200, 64),
    (bytes) => bytes.writeBigUInt64LE(2n ** 53n, 40),
    (bytes) => bytes.writeBigUInt64LE(2n ** 64n - 1n, 48),
    (bytes) => (bytes[60] = 2),
    (bytes) => (bytes[6] = 1),
    (bytes) => (bytes[63] = 1),
  ];
  for (const change of changes) {
    assert.throws(
      () => decodeFileHeader(fileHeader(change)),
      (error) => isKind(error, "corrupt"),
    );
  }
});

test("a record whose numbers need more than 53 bits is no record", () => {
  const bytes = Buffer.alloc(recordHeadBytes(1));
  encodeRecordHead(bytes, 0, { sequence: 1, epoch: 1, lba: 0, blockCount: 1, kind: EXTENT_DATA, chain: 0 });
  assert.notEqual(decodeRecordHead(bytes, 0), undefined);
  for (const at of [8, 16, 32]) {
    const changed = Buffer.from(bytes);
    changed.writeBigUInt64LE(2n ** 53n + 1n, at);
    changed.writeUInt32LE(crc32(changed.subarray(4)), 0);
    assert.equal(decodeRecordHead(changed, 0), undefined);
  }
});
