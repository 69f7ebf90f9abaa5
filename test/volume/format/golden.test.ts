/**
 * Golden bytes of format version 1, and a few fields read at the places docs/format.md gives, by hand. A codec that
 * fails here can no longer read what exists.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { encodeCheckpoint } from "../../../src/volume/format/checkpoint.ts";
import {
  encodeConfirmation,
  encodeEpochClaim,
  encodeLocation,
  encodeMeta,
  encodePublication,
  encodeRemoval,
  encodeTombstone,
} from "../../../src/volume/format/control-records.ts";
import { encodeEnvelope } from "../../../src/volume/format/envelope.ts";
import { journalFrameSeed, sealRawFrame, RAW_FRAME_BYTES, segmentFrameSeed } from "../../../src/volume/format/frame.ts";
import {
  COMMIT_MARK_BYTES,
  encodeFileHeader,
  encodeRecordHead,
  EXTENT_DATA,
  writeCommitMark,
} from "../../../src/volume/format/journal-record.ts";
import { encodeMapObjectHead } from "../../../src/volume/format/map-object.ts";
import { encodeMapPage, mapPageSeed, MapPageRuns } from "../../../src/volume/format/map-page.ts";
import { ObjectReferences } from "../../../src/volume/format/object-references.ts";
import { encodeSegmentHead } from "../../../src/volume/format/segment.ts";
import type { Epoch } from "../../../src/volume/identity.ts";
import { assertGolden, readGolden } from "../../golden/golden.ts";
import {
  dataHead,
  fenceHead,
  JOURNAL_ID,
  NONCE,
  sampleCheckpoint,
  sampleMeta,
  samplePage,
  startHead,
  TIME_MS,
  UID,
} from "./samples.ts";

const identity = { uid: UID, epoch: 3, sequence: 0x4_0000_0005, nonce: NONCE };
const SEED = mapPageSeed(identity.uid, identity.epoch, identity.sequence);
const { sources, runs } = samplePage();
const claim = {
  epoch: 3 as Epoch,
  nodeId: "node-1",
  journalId: JOURNAL_ID.toString("hex"),
  publication: 2,
  timeMs: TIME_MS,
};

/** The first bytes of a page in flat encoding: the rest repeats itself. */
function flatPageBeginning(): Buffer {
  const one = new ObjectReferences();
  one.push({ lineage: 0, epoch: 1, sequence: 2 });
  const many = new MapPageRuns();
  for (let block = 1; block < 22_001; block += 1) many.push(block, 1, 0x0001_0101, (block % 3) * 257);
  return encodeMapPage(9, one, many, SEED).subarray(0, 96);
}

function rawFrame(): Buffer {
  const frame = Buffer.alloc(RAW_FRAME_BYTES);
  for (let index = 16; index < frame.length; index += 1) frame[index] = index % 251;
  sealRawFrame(frame, 0, 0x3_0000_0001, segmentFrameSeed(UID, identity.epoch, identity.sequence));
  return frame;
}

function journalRecord(): Buffer {
  const head = Buffer.alloc(48);
  const extent = { lba: 0x3_0000_0001, blockCount: 2, kind: EXTENT_DATA };
  encodeRecordHead(head, 0, { sequence: 77, epoch: 3, ...extent, chain: 0x0102_0304 });
  return head;
}

function commitMark(): Buffer {
  const mark = Buffer.alloc(COMMIT_MARK_BYTES);
  writeCommitMark(mark, 0, journalFrameSeed(0x0102_0304, 12 * 2 ** 36 + 8176), 0x5_0000_004d);
  return mark;
}

function journalFile(): Buffer {
  const numbers = { fileNumber: 12, firstSequence: 77, chain: 0x0102_0304, fileBytes: 64 * 1024 * 1024 };
  return encodeFileHeader({ uid: UID, journalId: JOURNAL_ID, begins: true, ...numbers }).subarray(0, 96);
}

const structures: Record<string, () => Buffer> = {
  envelope: () => encodeEnvelope({ ...identity, kind: "gc-intent" }, Buffer.from("section")),
  "segment-data": () => encodeSegmentHead(identity, dataHead),
  "segment-start": () => encodeSegmentHead({ ...identity, sequence: 0 }, startHead),
  "segment-fence": () => encodeSegmentHead(identity, fenceHead),
  "frame-raw": rawFrame,
  "map-object": () => encodeMapObjectHead(identity, [{ shard: 5, page: encodeMapPage(5, sources, runs, SEED) }]).head,
  "map-page-runs": () => encodeMapPage(5, sources, runs, SEED),
  "map-page-flat": flatPageBeginning,
  checkpoint: () => encodeCheckpoint(identity, sampleCheckpoint()),
  meta: () => encodeMeta(NONCE, sampleMeta),
  "meta-deleted": () => encodeMeta(NONCE, { ...sampleMeta, deleted: true }),
  tombstone: () => encodeTombstone(NONCE, sampleMeta.id, { uid: UID, number: 3, frees: 2, timeMs: TIME_MS }),
  confirmation: () => encodeConfirmation(identity, { confirmed: true, timeMs: TIME_MS }),
  removal: () => encodeRemoval(identity, TIME_MS),
  epoch: () => encodeEpochClaim(identity, claim),
  publication: () => encodePublication(identity, { number: 4, nodeId: null, readOnly: false, timeMs: TIME_MS }),
  location: () => encodeLocation(NONCE, { url: "s3://bucket/prefix", endpoint: "", region: "eu-central-1" }),
  "journal-file": journalFile,
  "journal-record": journalRecord,
  "commit-mark": commitMark,
};

for (const [name, encode] of Object.entries(structures)) {
  test(`${name} is encoded as it always was`, () => assertGolden(name, encode()));
}

test("fields stand where the format document says", () => {
  const envelope = readGolden("envelope");
  assert.equal(envelope.toString("latin1", 0, 4), "S3BK");
  assert.equal(envelope[6], 10);
  assert.equal(envelope.toString("hex", 8, 24), UID);
  assert.equal(envelope.readBigUInt64LE(32), 0x4_0000_0005n);
  const segment = readGolden("segment-data");
  assert.equal(segment.readUInt32LE(64 + 4), 3);
  assert.equal(segment.readUInt32LE(64 + 72), segment.length);
  assert.equal(segment.readBigUInt64LE(64 + 96), 2n ** 34n - 3n);
  assert.equal(readGolden("segment-start").readBigUInt64LE(64 + 48), 0x2_0000_0001n);
  const page = readGolden("map-page-runs");
  assert.equal(page.toString("latin1", 0, 4), "S3MP");
  assert.equal(page.readUInt16LE(32 + 2 * 24 + 12), 100);
  assert.equal(readGolden("map-page-flat").readUInt16LE(8), 1);
  assert.equal(readGolden("checkpoint").readBigUInt64LE(64 + 40), 2n ** 44n);
  assert.equal(readGolden("frame-raw")[10], 1);
});
