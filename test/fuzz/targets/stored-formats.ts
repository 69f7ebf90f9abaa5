/**
 * The structures that stand in the object store. Oracle: whatever a decoder takes, encoding its value again gives the
 * same bytes, so nothing was read that had not been written; everything else is "corrupt".
 */
import assert from "node:assert/strict";
import { crc32 } from "../../../src/base/checksum.ts";
import { type DecodedCheckpoint, decodeCheckpoint, encodeCheckpoint } from "../../../src/volume/format/checkpoint.ts";
import * as records from "../../../src/volume/format/control-records.ts";
import { ENVELOPE_BYTES, NONCE_BYTES, peekEnvelope, sealEnvelope } from "../../../src/volume/format/envelope.ts";
import { decodeMapObjectHead, encodeMapObjectHead } from "../../../src/volume/format/map-object.ts";
import { decodeMapPage, encodeMapPage, mapPageSeed } from "../../../src/volume/format/map-page.ts";
import { decodeSegmentHead, encodeSegmentHead } from "../../../src/volume/format/segment.ts";
import type { Epoch, SegmentSeq } from "../../../src/volume/identity.ts";
import * as samples from "../../volume/format/samples.ts";
import type { FuzzTarget } from "../target.ts";
import { verdict } from "../verdict.ts";

const { UID, NONCE, JOURNAL_ID, TIME_MS } = samples;
const identity = { uid: UID, epoch: 3 as Epoch, sequence: 4 as SegmentSeq, nonce: NONCE };
const start = { ...identity, sequence: 0 as SegmentSeq };
const SHARD = 5;
const SEED = mapPageSeed(UID, identity.epoch, identity.sequence);

/** A right checksum over whatever stands there, with a section as long as the input allows. */
export function mendEnvelope(bytes: Buffer): Buffer {
  if (bytes.length < ENVELOPE_BYTES) return bytes;
  try {
    const { sectionLength, ...header } = peekEnvelope(bytes);
    sealEnvelope(bytes, header, Math.min(sectionLength, bytes.length - ENVELOPE_BYTES));
  } catch {
    // Magic, version, kind or a number is wrong: that is found before any checksum.
  }
  return bytes;
}

function nonceOf(bytes: Buffer): Buffer {
  return bytes.subarray(40, 40 + NONCE_BYTES);
}

function segment(name: string, seed: Buffer): FuzzTarget {
  return {
    name,
    seeds: [seed],
    mend: mendEnvelope,
    run: (input) =>
      verdict(
        ["corrupt"],
        () => decodeSegmentHead(input, {}),
        (head) => {
          const again = encodeSegmentHead({ ...head, nonce: nonceOf(input) }, head);
          assert.ok(again.equals(input.subarray(0, again.length)), "the head is not what was encoded");
        },
      ),
  };
}

function checkpoint(): FuzzTarget {
  return {
    name: "checkpoint",
    seeds: [encodeCheckpoint(identity, samples.sampleCheckpoint())],
    mend: mendEnvelope,
    run: (input) =>
      verdict(
        ["corrupt"],
        () => decodeCheckpoint(input, {}),
        (value: DecodedCheckpoint) => {
          const again = encodeCheckpoint({ ...value, sequence: value.number, nonce: nonceOf(input) }, value);
          // The tail of a newer version is skipped, not kept: tail length, section length and checksum differ then.
          const tailBytes = input.readUInt32LE(ENVELOPE_BYTES + 68);
          assert.equal(again.length + tailBytes, input.length);
          if (tailBytes === 0) assert.ok(again.equals(input), "the checkpoint is not what was encoded");
        },
      ),
  };
}

function mapObject(): FuzzTarget {
  const { sources, runs } = samples.samplePage();
  const pages = [SHARD, 9].map((shard) => ({ shard, page: encodeMapPage(shard, sources, runs, SEED) }));
  return {
    name: "map-object",
    seeds: [encodeMapObjectHead(identity, pages).head],
    mend: mendEnvelope,
    run: (input) =>
      verdict(
        ["corrupt"],
        () => decodeMapObjectHead(input, {}),
        (entries) => {
          for (const [index, { shard, offset, length, crc }] of entries.entries()) {
            const row = [shard, offset, length, crc];
            const at = ENVELOPE_BYTES + 8 + 16 * index;
            assert.deepEqual(
              row,
              [0, 4, 8, 12].map((field) => input.readUInt32LE(at + field)),
            );
          }
        },
      ),
  };
}

export function mendPage(bytes: Buffer): Buffer {
  if (bytes.length < 32) return bytes;
  bytes.writeUInt32LE(bytes.length, 20);
  bytes.writeUInt32LE(0, 24);
  bytes.writeUInt32LE(crc32(bytes, SEED), 24);
  return bytes;
}

function mapPage(): FuzzTarget {
  const { sources, runs } = samples.samplePage();
  return {
    name: "map-page",
    seeds: [encodeMapPage(SHARD, sources, runs, SEED)],
    mend: mendPage,
    run: (input) =>
      verdict(
        ["corrupt"],
        () => decodeMapPage(input, SHARD, SEED),
        (page) => {
          const again = encodeMapPage(SHARD, page.sources, page.runs, SEED);
          // Runs that could be one may stand as two, and either encoding may have been chosen: the entries count.
          const decoded = decodeMapPage(again, SHARD, SEED);
          assert.deepEqual(samples.pageEntries(decoded.runs), samples.pageEntries(page.runs));
          assert.deepEqual(samples.referenceRows(decoded.sources), samples.referenceRows(page.sources));
          if (input.readUInt16LE(8) === 0 && again.readUInt16LE(8) === 0) assert.ok(again.equals(input));
        },
      ),
  };
}

/** Unknown fields are dropped, so what counts is that the value survives being written again. */
function record<T>(name: string, seed: Buffer, decode: (bytes: Buffer) => T, encode: (value: T) => Buffer): FuzzTarget {
  return {
    name,
    seeds: [seed],
    mend: mendEnvelope,
    run: (input) =>
      verdict(
        ["corrupt"],
        () => decode(input),
        (value) => assert.deepEqual(decode(encode(value)), value),
      ),
  };
}

export function storedFormats(): FuzzTarget[] {
  const { sampleMeta } = samples;
  const claim = {
    epoch: identity.epoch,
    nodeId: "n",
    journalId: JOURNAL_ID.toString("hex"),
    publication: 2,
    timeMs: TIME_MS,
  };
  const publication = { number: 4, nodeId: "node-1", readOnly: true, timeMs: TIME_MS };
  const location = { url: "s3://bucket/prefix", endpoint: "https://endpoint", region: "r" };
  const ofClaim = { uid: UID, epoch: claim.epoch };
  const tombstone = { uid: UID, number: 3, frees: 2, timeMs: TIME_MS };
  const confirmation = { confirmed: true, timeMs: TIME_MS };
  const ofTombstone = { id: sampleMeta.id, number: tombstone.number };
  const ofPublication = { uid: UID, number: publication.number };
  return [
    segment("segment", encodeSegmentHead(identity, samples.dataHead)),
    segment("segment-start", encodeSegmentHead(start, samples.startHead)),
    segment("segment-fence", encodeSegmentHead(identity, samples.fenceHead)),
    checkpoint(),
    mapObject(),
    mapPage(),
    record(
      "metadata",
      records.encodeMeta(NONCE, sampleMeta),
      (bytes) => records.decodeMeta(bytes, sampleMeta),
      (value) => records.encodeMeta(NONCE, value),
    ),
    record(
      "tombstone",
      records.encodeTombstone(NONCE, sampleMeta.id, tombstone),
      (bytes) => records.decodeTombstone(bytes, ofTombstone),
      (value) => records.encodeTombstone(NONCE, sampleMeta.id, value),
    ),
    record(
      "name-record",
      records.encodeTombstone(NONCE, sampleMeta.id, tombstone),
      (bytes) => records.decodeNameRecord(bytes, ofTombstone),
      (value) =>
        "meta" in value
          ? records.encodeMeta(NONCE, value.meta)
          : records.encodeTombstone(NONCE, sampleMeta.id, value.tombstone),
    ),
    record(
      "confirmation",
      records.encodeConfirmation(identity, confirmation),
      (bytes) => records.decodeConfirmation(bytes, { uid: UID }),
      (value) => records.encodeConfirmation(identity, value),
    ),
    record(
      "epoch-claim",
      records.encodeEpochClaim(identity, claim),
      (bytes) => records.decodeEpochClaim(bytes, ofClaim),
      (value) => records.encodeEpochClaim(identity, value),
    ),
    record(
      "publication",
      records.encodePublication(identity, publication),
      (bytes) => records.decodePublication(bytes, ofPublication),
      (value) => records.encodePublication(identity, value),
    ),
    record(
      "location",
      records.encodeLocation(NONCE, location),
      (bytes) => records.decodeLocation(bytes),
      (value) => records.encodeLocation(NONCE, value),
    ),
  ];
}
