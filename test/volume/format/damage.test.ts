/**
 * Damage: whatever bytes a decoder is given, it answers with a value or with "corrupt", soon, and with no more memory
 * than the bytes it was given deserve. Damage behind a right checksum (a hostile or broken writer) counts too.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { crc32 } from "../../../src/base/checksum.ts";
import { isKind } from "../../../src/base/errors.ts";
import { decodeCheckpoint, encodeCheckpoint } from "../../../src/volume/format/checkpoint.ts";
import {
  decodeEpochClaim,
  decodeLocation,
  decodeMeta,
  decodePublication,
  encodeEpochClaim,
  encodeLocation,
  encodeMeta,
  encodePublication,
} from "../../../src/volume/format/control-records.ts";
import { ENVELOPE_BYTES, peekEnvelope } from "../../../src/volume/format/envelope.ts";
import { decodeMapObjectHead, encodeMapObjectHead } from "../../../src/volume/format/map-object.ts";
import { decodeMapPage, encodeMapPage, mapPageSeed } from "../../../src/volume/format/map-page.ts";
import { decodeSegmentHead, encodeSegmentHead } from "../../../src/volume/format/segment.ts";
import type { Epoch } from "../../../src/volume/identity.ts";
import {
  dataHead,
  JOURNAL_ID,
  NONCE,
  sampleCheckpoint,
  sampleMeta,
  samplePage,
  startHead,
  TIME_MS,
  UID,
  withSection,
} from "./samples.ts";

const identity = { uid: UID, epoch: 3, sequence: 4, nonce: NONCE };
const SEED = mapPageSeed(identity.uid, identity.epoch, identity.sequence);
const { sources, runs } = samplePage();
const page = encodeMapPage(5, sources, runs, SEED);
const publication = { number: 4, nodeId: "node-1", readOnly: true, timeMs: TIME_MS };
const claim = {
  epoch: 3 as Epoch,
  nodeId: "n",
  journalId: JOURNAL_ID.toString("hex"),
  publication: 2,
  timeMs: TIME_MS,
};
const location = { url: "s3://bucket/prefix", endpoint: "", region: "r" };

const structures: { name: string; good: Buffer; decode: (bytes: Buffer) => unknown }[] = [
  {
    name: "data segment",
    good: encodeSegmentHead(identity, dataHead),
    decode: (bytes) => decodeSegmentHead(bytes, {}),
  },
  {
    name: "START",
    good: encodeSegmentHead({ ...identity, sequence: 0 }, startHead),
    decode: (bytes) => decodeSegmentHead(bytes, {}),
  },
  {
    name: "map object",
    good: encodeMapObjectHead(identity, [{ shard: 5, page }]).head,
    decode: (bytes) => decodeMapObjectHead(bytes, {}),
  },
  {
    name: "checkpoint",
    good: encodeCheckpoint(identity, sampleCheckpoint()),
    decode: (bytes) => decodeCheckpoint(bytes, {}),
  },
  { name: "metadata", good: encodeMeta(NONCE, sampleMeta), decode: (bytes) => decodeMeta(bytes, sampleMeta) },
  {
    name: "epoch claim",
    good: encodeEpochClaim(identity, claim),
    decode: (bytes) => decodeEpochClaim(bytes, { uid: UID, epoch: claim.epoch }),
  },
  {
    name: "publication",
    good: encodePublication(identity, publication),
    decode: (bytes) => decodePublication(bytes, { uid: UID, number: publication.number }),
  },
  { name: "location", good: encodeLocation(NONCE, location), decode: (bytes) => decodeLocation(bytes) },
];

/** True where `decode` gave a value, false where it said "corrupt"; anything else fails the test. */
function survives(decode: (bytes: Buffer) => unknown, bytes: Buffer): boolean {
  try {
    decode(bytes);
    return true;
  } catch (error) {
    assert.ok(isKind(error, "corrupt"), `${String(error)} for ${bytes.toString("hex").slice(0, 400)}`);
    return false;
  }
}

const change = fc.record({ at: fc.nat(), byte: fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 0x7f, 0xff)) });
const changes = fc.array(change, { minLength: 1, maxLength: 6 });

for (const { name, good, decode } of structures) {
  test(`${name}: arbitrary bytes are corrupt`, () => {
    assert.ok(survives(decode, good), "the sample itself is sound");
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), fc.boolean(), (tail, headed) => {
        const bytes = headed ? Buffer.concat([good.subarray(0, 60), tail]) : Buffer.from(tail);
        assert.equal(survives(decode, bytes), false);
      }),
      { numRuns: 500 },
    );
  });

  test(`${name}: a section of arbitrary bytes behind a right checksum is a value or corrupt`, () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), (section) => {
        survives(
          decode,
          withSection(good.subarray(0, ENVELOPE_BYTES + sectionBytes(good)), () => Buffer.from(section)),
        );
      }),
      { numRuns: 500 },
    );
  });

  test(`${name}: a changed section behind a right checksum is a value or corrupt`, () => {
    fc.assert(
      fc.property(changes, (mutations) => {
        const bytes = withSection(good, (section) => {
          for (const { at, byte } of mutations) section[at % section.length] = byte;
        });
        survives(decode, bytes);
      }),
      { numRuns: 2000 },
    );
  });
}

test("map page: arbitrary bytes are corrupt, changed ones behind a right checksum a value or corrupt", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), fc.nat(32), (tail, kept) => {
      const bytes = Buffer.concat([page.subarray(0, kept), tail]);
      assert.equal(
        survives((input) => decodeMapPage(input, 5, SEED), bytes),
        false,
      );
    }),
    { numRuns: 1000 },
  );
  fc.assert(
    fc.property(changes, (mutations) => {
      const bytes = Buffer.from(page);
      for (const { at, byte } of mutations) bytes[at % bytes.length] = byte;
      bytes.writeUInt32LE(0, 24);
      bytes.writeUInt32LE(crc32(bytes, SEED), 24);
      survives((input) => decodeMapPage(input, 5, SEED), bytes);
    }),
    { numRuns: 4000 },
  );
});

function sectionBytes(object: Buffer): number {
  return peekEnvelope(object).sectionLength;
}
