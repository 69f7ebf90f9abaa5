/** Control records: round trips, tolerance for fields that a newer version adds, none for wrong ones. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKind } from "../../../src/base/errors.ts";
import {
  decodeConfirmation,
  decodeEpochClaim,
  decodeLocation,
  decodeMeta,
  decodeNameRecord,
  decodePublication,
  decodeTombstone,
  encodeConfirmation,
  encodeEpochClaim,
  encodeLocation,
  encodeMeta,
  encodePublication,
  encodeTombstone,
  type VolumeMeta,
} from "../../../src/volume/format/control-records.ts";
import { type Epoch, type VolumeId } from "../../../src/volume/identity.ts";
import { bytes16, NONCE, number53, sampleMeta, TIME_MS, uid, UID, withSection } from "./samples.ts";

const text = fc.string({ unit: "grapheme", maxLength: 40 });

const meta: fc.Arbitrary<VolumeMeta> = fc
  .record({
    id: fc.stringMatching(/^[a-z0-9][a-z0-9-]{0,62}$/).map((id) => id as VolumeId),
    uid,
    number: number53,
    name: text,
    blocks: fc.integer({ min: 256, max: 2 ** 31 - 1 }),
    blockSizeBytes: fc.constantFrom<512 | 4096>(512, 4096),
    durability: fc.constantFrom<"s3" | "local">("s3", "local"),
    lineage: fc.array(uid, { maxLength: 3 }),
    createdMs: number53,
    fsType: fc.option(text),
    parameters: fc.dictionary(fc.oneof(text, fc.constantFrom("__proto__", "toString")), text, {
      noNullPrototype: true,
    }),
    deleted: fc.boolean(),
  })
  .map(({ blocks, fsType, ...rest }) => ({
    ...rest,
    sizeBytes: blocks * 4096,
    codec: "none",
    encryption: null,
    ...(fsType === null ? {} : { fsType }),
  }));

test("decoding encoded metadata gives the same metadata", () => {
  fc.assert(
    fc.property(bytes16, meta, (nonce, written) => {
      assert.deepEqual(decodeMeta(encodeMeta(nonce, written), { id: written.id, number: written.number }), written);
    }),
  );
});

test("decoding an encoded epoch claim, publication or location gives the same", () => {
  const plain = { noNullPrototype: true };
  const claims = fc.record({ nodeId: text, publication: number53, timeMs: number53 }, plain);
  const publications = fc.record(
    {
      number: number53,
      nodeId: fc.option(text),
      readOnly: fc.boolean(),
      timeMs: number53,
    },
    plain,
  );
  const locations = fc.record({ url: text, endpoint: text, region: text }, plain);
  fc.assert(
    fc.property(uid, bytes16, claims, publications, locations, (owner, nonce, fields, publication, location) => {
      const header = { uid: owner, nonce };
      const claim = { ...fields, epoch: 9 as Epoch, journalId: nonce.toString("hex") };
      assert.deepEqual(decodeEpochClaim(encodeEpochClaim(header, claim), { uid: owner, epoch: claim.epoch }), claim);
      const expected = { uid: owner, number: publication.number };
      assert.deepEqual(decodePublication(encodePublication(header, publication), expected), publication);
      assert.deepEqual(decodeLocation(encodeLocation(nonce, location)), location);
    }),
  );
});

/** The metadata sample with some JSON fields replaced. */
function metaWith(changes: Record<string, unknown>): Buffer {
  return withSection(encodeMeta(NONCE, sampleMeta), (section) => {
    const fields: object = JSON.parse(section.toString()) as object;
    return Buffer.from(JSON.stringify({ ...fields, ...changes }));
  });
}

const expected = { id: sampleMeta.id, number: sampleMeta.number };

test("fields that this version does not know are dropped", () => {
  assert.deepEqual(decodeMeta(metaWith({ later: { any: 1 } }), expected), sampleMeta);
});

const wrong: [string, unknown][] = [
  ["id", "vol-2"],
  ["id", "../vol-1"],
  ["name", 5],
  ["sizeBytes", "4096"],
  ["sizeBytes", 4096],
  ["sizeBytes", 1024 ** 3 + 512],
  ["sizeBytes", 2 ** 47],
  ["sizeBytes", -4096],
  ["sizeBytes", 1e300],
  ["blockSizeBytes", 1024],
  ["durability", "none"],
  ["lineage", "x"],
  ["lineage", ["x"]],
  ["createdMs", 1.5],
  ["fsType", null],
  ["parameters", []],
  ["parameters", { a: 1 }],
  ["deleted", false],
];

for (const [field, value] of wrong) {
  test(`metadata with ${field} ${JSON.stringify(value)} is corrupt`, () => {
    assert.throws(
      () => decodeMeta(metaWith({ [field]: value }), expected),
      (error) => isKind(error, "corrupt"),
    );
  });
}

test("metadata that asks for compression or encryption is refused as a newer version's", () => {
  assert.throws(() => decodeMeta(metaWith({ codec: "zstd" }), expected), /newer s3block/);
  assert.throws(() => decodeMeta(metaWith({ encryption: { key: "k" } }), expected), /newer s3block/);
  assert.throws(() => decodeMeta(metaWith({ encryption: undefined }), expected), /newer s3block/);
});

test("a section that is no JSON object in UTF-8, and bytes behind it, are corrupt", () => {
  const good = encodeMeta(NONCE, sampleMeta);
  for (const section of ["", "{", "[]", "null", "5", '"x"', Buffer.from([0x22, 0xff, 0x22])]) {
    const bytes = withSection(good, () => Buffer.from(section));
    assert.throws(
      () => decodeMeta(bytes, expected),
      (error) => isKind(error, "corrupt"),
    );
  }
  assert.throws(() => decodeMeta(Buffer.concat([good, Buffer.alloc(1)]), expected), /not of its size/);
});

test("a record is read only as what its key says", () => {
  const header = { uid: UID, nonce: NONCE };
  const publication = encodePublication(header, { number: 4, nodeId: "n", readOnly: false, timeMs: TIME_MS });
  assert.throws(() => decodePublication(publication, { uid: UID, number: 5 }), /sequence differs/);
  assert.throws(() => decodeEpochClaim(publication, { uid: UID, epoch: 4 as Epoch }), /kind differs/);
  assert.throws(() => decodeMeta(encodeMeta(NONCE, sampleMeta), { ...expected, number: 1 }), /sequence differs/);
});

test("an epoch claim needs a journal id of 32 hex digits", () => {
  const claim = { epoch: 1 as Epoch, nodeId: "n", journalId: "xyz", publication: 0, timeMs: TIME_MS };
  const bytes = encodeEpochClaim({ uid: UID, nonce: NONCE }, claim);
  assert.throws(() => decodeEpochClaim(bytes, { uid: UID, epoch: 1 as Epoch }), /field=journalId/);
});

test("a record of a name is metadata or a tombstone, of this name and number", () => {
  const id = sampleMeta.id;
  const tombstone = { uid: UID, number: 3, frees: 2, timeMs: TIME_MS };
  const bytes = encodeTombstone(NONCE, id, tombstone);
  assert.deepEqual(decodeNameRecord(bytes, { id, number: 3 }), { tombstone });
  assert.deepEqual(decodeNameRecord(encodeMeta(NONCE, sampleMeta), { id, number: 2 }), { meta: sampleMeta });
  assert.throws(() => decodeTombstone(bytes, { id, number: 4 }), /sequence differs/);
  assert.throws(() => decodeTombstone(bytes, { id: "vol-2" as VolumeId, number: 3 }), /another name/);
  for (const frees of [0, 3, 4, 1.5, "2"]) {
    const wrongNumber = withSection(bytes, () => Buffer.from(JSON.stringify({ id, frees, timeMs: 1 })));
    assert.throws(() => decodeTombstone(wrongNumber, { id, number: 3 }), /field=frees/);
  }
});

test("a confirmation says yes or no, for one volume", () => {
  for (const confirmed of [true, false]) {
    const bytes = encodeConfirmation({ uid: UID, nonce: NONCE }, { confirmed, timeMs: TIME_MS });
    assert.deepEqual(decodeConfirmation(bytes, { uid: UID }), { confirmed, timeMs: TIME_MS });
    assert.throws(() => decodeConfirmation(bytes, { uid: "f".repeat(32) as typeof UID }), /uid differs/);
    const silent = withSection(bytes, () => Buffer.from(JSON.stringify({ timeMs: 1 })));
    assert.throws(() => decodeConfirmation(silent, { uid: UID }), /field=confirmed/);
  }
});
