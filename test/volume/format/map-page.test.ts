/** Map pages in both encodings, and the map objects that hold them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { AssertionError } from "../../../src/base/assert.ts";
import { crc32 } from "../../../src/base/checksum.ts";
import { isKind } from "../../../src/base/errors.ts";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { decodeMapObjectHead, encodeMapObjectHead } from "../../../src/volume/format/map-object.ts";
import {
  decodeMapPage,
  ENCODED_FLAG,
  encodeMapPage,
  mapPageSeed,
  MAX_SHARDS,
  MapPageRuns,
  RAW_FRAME_UNITS,
} from "../../../src/volume/format/map-page.ts";
import { ObjectReferences } from "../../../src/volume/format/object-references.ts";
import { NONCE, pageEntries, randomPage, referenceRows, samplePage, UID, withSection } from "./samples.ts";

const identity = { uid: UID, epoch: 3, sequence: 4, nonce: NONCE };
const SEED = mapPageSeed(identity.uid, identity.epoch, identity.sequence);
const FLAT_BYTES = 32_768 * 8;

/** Recomputes the page's checksum after a change. */
function changed(page: Buffer, change: (bytes: Buffer) => void): Buffer {
  const bytes = Buffer.from(page);
  change(bytes);
  bytes.writeUInt32LE(0, 24);
  bytes.writeUInt32LE(crc32(bytes, SEED), 24);
  return bytes;
}

for (const maxRuns of [0, 500, 32_768]) {
  test(`a page of at most ${maxRuns} runs comes back with the same sources and entries`, () => {
    const checked = fc.property(fc.integer(), (seed) => {
      const random = new SeededRandom(seed);
      const { sources, runs } = randomPage((limit) => random.below(limit), maxRuns);
      const decoded = decodeMapPage(encodeMapPage(77, sources, runs, SEED), 77, SEED);
      assert.deepEqual(referenceRows(decoded.sources), referenceRows(sources));
      assert.deepEqual(pageEntries(decoded.runs), pageEntries(runs));
    });
    fc.assert(checked, { numRuns: maxRuns > 1000 ? 5 : 100 });
  });
}

test("a page of more runs than a flat one has room for is flat, and comes back as the same runs", () => {
  const random = new SeededRandom(9);
  const sources = new ObjectReferences();
  for (let index = 0; index < 32_768; index += 1) sources.push({ lineage: 0, epoch: 1 + (index % 9), sequence: index });
  const runs = new MapPageRuns();
  for (let block = 0; block < 32_768; block += 1) {
    if (block % 10 === 3) continue;
    const encoded = random.below(2) === 0;
    const word0 = ((block + 1) << 16) | (encoded ? ENCODED_FLAG | 2 : RAW_FRAME_UNITS);
    runs.push(block, 1, word0 >>> 0, encoded ? random.below(2 ** 26 - 2 ** 22) : random.below(2 ** 22 - 257));
  }
  for (let index = 0; index < runs.count; index += 1) {
    if ((runs.word0[index] & ENCODED_FLAG) !== 0 && (runs.word1[index] & 0x3fffff) > 2 ** 22 - 2) runs.word1[index] = 0;
  }
  const page = encodeMapPage(1, sources, runs, SEED);
  assert.equal(page.length, 32 + 32_768 * 24 + FLAT_BYTES);
  const decoded = decodeMapPage(page, 1, SEED);
  assert.equal(decoded.runs.count, runs.count);
  assert.deepEqual(pageEntries(decoded.runs), pageEntries(runs));
  assert.deepEqual(referenceRows(decoded.sources), referenceRows(sources));
});

test("neighbours of a flat page become one run where the next entry follows from the one before", () => {
  const { sources } = samplePage();
  const runs = new MapPageRuns();
  const raw = ((1 << 16) | RAW_FRAME_UNITS) >>> 0;
  for (let block = 0; block < 32_000; block += 1) runs.push(block, 1, raw, (block % 16_000) * RAW_FRAME_UNITS);
  for (let block = 0; block < 32; block += 1) {
    runs.push(32_000 + block, 1, ((1 << 16) | ENCODED_FLAG | 9) >>> 0, (block % 16) * 2 ** 22 + 5);
  }
  const decoded = decodeMapPage(encodeMapPage(0, sources, runs, SEED), 0, SEED).runs;
  const rows = Array.from({ length: decoded.count }, (_, index) => [decoded.start[index], decoded.blockCount[index]]);
  assert.deepEqual(rows, [
    [0, 16_000],
    [16_000, 16_000],
    [32_000, 16],
    [32_016, 16],
  ]);
});

test("every changed bit of a page is found", () => {
  const { sources, runs } = samplePage();
  const good = encodeMapPage(5, sources, runs, SEED);
  for (let bit = 0; bit < good.length * 8; bit += 1) {
    const bytes = Buffer.from(good);
    bytes[bit >> 3] ^= 1 << (bit & 7);
    assert.throws(
      () => decodeMapPage(bytes, 5, SEED),
      (error) => isKind(error, "corrupt"),
      `bit ${bit}`,
    );
  }
});

test("a page of another map object is no page of this one, whatever else they share", () => {
  const { sources, runs } = samplePage();
  const page = encodeMapPage(5, sources, runs, SEED);
  for (const [uid, epoch, number] of [
    [UID.replace("00", "01"), 3, 4],
    [UID, 2, 4],
    [UID, 3, 3],
  ] as const) {
    assert.throws(
      () => decodeMapPage(page, 5, mapPageSeed(uid, epoch, number)),
      (error) => isKind(error, "corrupt"),
    );
  }
});

const RUNS_AT = 32 + 2 * 24;
const refused: { what: string; change: (bytes: Buffer) => void; message: RegExp }[] = [
  { what: "of another shard", change: (bytes) => void bytes.writeUInt32LE(6, 4), message: /another shard/ },
  { what: "of an unknown encoding", change: (bytes) => void bytes.writeUInt16LE(2, 8), message: /unknown encoding/ },
  { what: "that is flat with few entries", change: (bytes) => void bytes.writeUInt16LE(1, 8), message: /counts/ },
  { what: "with reserved bytes set", change: (bytes) => void bytes.writeUInt16LE(1, 10), message: /reserved/ },
  { what: "that counts 2^32 sources", change: (b) => void b.writeUInt32LE(0xffff_ffff, 12), message: /counts/ },
  { what: "that counts 2^32 runs", change: (bytes) => void bytes.writeUInt32LE(0xffff_ffff, 16), message: /counts/ },
  { what: "with a reserved word set", change: (bytes) => void bytes.writeUInt32LE(1, 28), message: /reserved/ },
  { what: "with a source of epoch 0", change: (bytes) => void bytes.fill(0, 40, 48), message: /no epoch/ },
  { what: "with reserved bytes in a source", change: (bytes) => void bytes.writeUInt8(1, 34), message: /reserved/ },
  { what: "with runs that overlap", change: (b) => void b.writeUInt16LE(100, RUNS_AT + 2), message: /overlap/ },
  {
    what: "with a run that is too long",
    change: (b) => void b.writeUInt16LE(0xffff, RUNS_AT + 2),
    message: /too long/,
  },
  {
    what: "with a run behind its end",
    change: (b) => void b.writeUInt16LE(1, RUNS_AT + 26),
    message: /outside the shard/,
  },
  { what: "with a run of no source", change: (b) => void b.writeUInt16LE(0, RUNS_AT + 6), message: /no source/ },
  { what: "with a run of source 3 of 2", change: (b) => void b.writeUInt16LE(3, RUNS_AT + 6), message: /no source/ },
  {
    what: "with reserved bits in word0",
    change: (b) => void b.writeUInt8(0x41, RUNS_AT + 5),
    message: /reserved bits/,
  },
  {
    what: "with reserved bits in word1",
    change: (b) => void b.writeUInt8(0x04, RUNS_AT + 11),
    message: /reserved bits/,
  },
  { what: "with a raw frame of another length", change: (b) => void b.writeUInt8(2, RUNS_AT + 4), message: /raw/ },
  { what: "with a block in a raw frame", change: (b) => void b.writeUInt8(0x40, RUNS_AT + 10), message: /raw/ },
  {
    what: "with a raw run outside any segment",
    change: (b) => void b.writeUIntLE(0x3fffff, RUNS_AT + 8, 3),
    message: /any segment/,
  },
  {
    what: "with an encoded frame of no length",
    change: (b) => void b.writeUInt16LE(0x2001, RUNS_AT + 16),
    message: /valid length/,
  },
  {
    what: "with an encoded frame too long",
    change: (b) => void b.writeUInt16LE(0x3002, RUNS_AT + 16),
    message: /valid length/,
  },
  {
    what: "with more blocks than a frame",
    change: (b) => void b.writeUInt16LE(15, RUNS_AT + 14),
    message: /longer than its frame/,
  },
];

for (const { what, change, message } of refused) {
  test(`a page ${what} is refused`, () => {
    const { sources, runs } = samplePage();
    const page = changed(encodeMapPage(5, sources, runs, SEED), change);
    assert.throws(
      () => decodeMapPage(page, 5, SEED),
      (error) => isKind(error, "corrupt") && message.test(error.message),
    );
  });
}

test("a hole of a flat page that names a place is refused", () => {
  const sources = new ObjectReferences();
  sources.push({ lineage: 0, epoch: 1, sequence: 1 });
  const runs = new MapPageRuns();
  for (let block = 0; block < 22_000; block += 1) runs.push(block, 1, ((1 << 16) | RAW_FRAME_UNITS) >>> 0, 12);
  const page = changed(encodeMapPage(0, sources, runs, SEED), (bytes) => void bytes.writeUInt8(1, bytes.length - 4));
  assert.throws(() => decodeMapPage(page, 0, SEED), /hole with a place/);
});

test("a page is never written with runs that overlap or name no source", () => {
  const { sources, runs } = samplePage();
  assert.throws(() => encodeMapPage(MAX_SHARDS, sources, runs, SEED), AssertionError);
  assert.throws(() => encodeMapPage(0, new ObjectReferences(), runs, SEED), AssertionError);
  runs.start[1] = 1;
  assert.throws(() => encodeMapPage(0, sources, runs, SEED), AssertionError);
});

test("a map object lists its pages where they stand", () => {
  const pages = [3, 1, 524_287].map((shard) => {
    const { sources, runs } = randomPage(() => 1, shard % 7);
    return { shard, page: encodeMapPage(shard, sources, runs, SEED) };
  });
  const { head, entries } = encodeMapObjectHead(identity, pages);
  const object = Buffer.concat([head, ...pages.map(({ page }) => page)]);
  assert.deepEqual(decodeMapObjectHead(object, identity), entries);
  for (const { shard, offset, length, crc } of entries) {
    const page = object.subarray(offset, offset + length);
    assert.equal(crc32(page), crc);
    decodeMapPage(page, shard, SEED);
  }
});

test("a map object that counts more pages than it lists, or lists them elsewhere, is refused", () => {
  const { sources, runs } = samplePage();
  const { head } = encodeMapObjectHead(identity, [{ shard: 5, page: encodeMapPage(5, sources, runs, SEED) }]);
  for (const change of [
    (section: Buffer): void => void section.writeUInt32LE(0xffff_ffff, 0),
    (section: Buffer): void => void section.writeUInt32LE(1, 4),
    (section: Buffer): void => void section.writeUInt32LE(MAX_SHARDS, 8),
    (section: Buffer): void => void section.writeUInt32LE(0, 12),
    (section: Buffer): void => void section.writeUInt32LE(0, 16),
    (): Buffer => Buffer.alloc(0),
  ]) {
    assert.throws(
      () => decodeMapObjectHead(withSection(head, change), identity),
      (error) => isKind(error, "corrupt"),
    );
  }
});
