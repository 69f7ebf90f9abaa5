/** Checkpoint roots: a round trip at any size, and every rule that a reader relies on. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { AssertionError } from "../../../src/base/assert.ts";
import { isKind } from "../../../src/base/errors.ts";
import {
  type Checkpoint,
  CheckpointShards,
  decodeCheckpoint,
  encodeCheckpoint,
} from "../../../src/volume/format/checkpoint.ts";
import { ObjectReferences } from "../../../src/volume/format/object-references.ts";
import type { Epoch, SegmentSeq } from "../../../src/volume/identity.ts";
import { bytes16, header, NONCE, number53, referenceRows, sampleCheckpoint, uid, UID, withSection } from "./samples.ts";

const identity = { uid: UID, epoch: 3, sequence: 4, nonce: NONCE };

function shardRows(shards: CheckpointShards): number[][] {
  return Array.from({ length: shards.count }, (_, index) => [
    shards.shard[index],
    shards.mapObject[index],
    shards.offset[index],
    shards.length[index],
  ]);
}

const arbitrary: fc.Arbitrary<Checkpoint> = fc
  .record({
    epoch: fc.integer({ min: 1 }),
    sequence: number53,
    journalId: bytes16,
    journalEnd: number53,
    sizeBytes: fc.integer({ min: 2 ** 20, max: 2 ** 34 }).map((blocks) => Math.min(blocks, 2 ** 34) * 4096),
    everWritten: fc.boolean(),
    timeMs: number53,
    lineage: fc.array(uid, { maxLength: 3 }),
    objects: fc.array(fc.record({ epoch: fc.integer({ min: 1 }), sequence: number53 }), { minLength: 1, maxLength: 5 }),
    shards: fc.uniqueArray(fc.nat(31), { maxLength: 30 }),
    place: fc.nat(2 ** 31 - 1),
  })
  .map(({ epoch, sequence, objects, shards, place, ...rest }) => {
    const mapObjects = new ObjectReferences();
    for (const [index, object] of objects.entries()) {
      mapObjects.push({ lineage: index % (rest.lineage.length + 1), ...object });
    }
    const rows = new CheckpointShards(shards.length);
    for (const [index, shard] of shards.toSorted((one, other) => one - other).entries()) {
      rows.set(index, { shard, mapObject: shard % objects.length, offset: 64 + place, length: 1 + shard });
    }
    return { ...rest, covers: { epoch: epoch as Epoch, sequence: sequence as SegmentSeq }, mapObjects, shards: rows };
  });

test("decoding an encoded checkpoint gives the same checkpoint", () => {
  fc.assert(
    fc.property(header, arbitrary, (fields, checkpoint) => {
      const decoded = decodeCheckpoint(encodeCheckpoint(fields, checkpoint), fields);
      const { mapObjects, shards, uid: foundUid, epoch, number, ...rest } = decoded;
      const { mapObjects: expectedObjects, shards: expectedShards, ...expected } = checkpoint;
      assert.deepEqual(rest, expected);
      assert.deepEqual([foundUid, epoch, number], [fields.uid, fields.epoch, fields.sequence]);
      assert.deepEqual(referenceRows(mapObjects), referenceRows(expectedObjects));
      assert.deepEqual(shardRows(shards), shardRows(expectedShards));
    }),
  );
});

test("a full 16 TiB volume has a root of 2 MiB", () => {
  const checkpoint = sampleCheckpoint();
  const shards = new CheckpointShards(131_072);
  for (let shard = 0; shard < shards.count; shard += 1)
    shards.set(shard, { shard, mapObject: 0, offset: 80, length: 60 });
  const bytes = encodeCheckpoint(identity, { ...checkpoint, shards });
  assert.equal(bytes.length, 64 + 96 + 16 + 2 * 24 + 131_072 * 16);
  assert.equal(decodeCheckpoint(bytes, identity).shards.shard[131_071], 131_071);
});

test("a tail of later tables is skipped", () => {
  const bytes = withSection(encodeCheckpoint(identity, sampleCheckpoint()), (section) => {
    section.writeUInt32LE(5, 68);
    return Buffer.concat([section, Buffer.from("later")]);
  });
  assert.deepEqual(shardRows(decodeCheckpoint(bytes, identity).shards), shardRows(sampleCheckpoint().shards));
});

const SHARDS_AT = 96 + 16 + 2 * 24;
const refused: { what: string; change: (section: Buffer) => Buffer | void; message: RegExp }[] = [
  { what: "that covers nothing", change: (section) => void section.fill(0, 0, 8), message: /covers no epoch/ },
  { what: "of an odd size", change: (section) => void section.writeUInt8(1, 40), message: /volume size/ },
  { what: "of 128 TiB", change: (section) => void section.writeUInt8(0x80, 45), message: /volume size/ },
  { what: "with an invalid flag", change: (section) => void section.writeUInt8(2, 48), message: /invalid flag/ },
  { what: "with reserved bytes set", change: (section) => void section.writeUInt8(1, 55), message: /reserved/ },
  { what: "with reserved bytes at its end", change: (section) => void section.writeUInt8(1, 95), message: /reserved/ },
  { what: "with 2^32 ancestors", change: (s) => void s.writeUInt32LE(0xffff_ffff, 56), message: /counts/ },
  { what: "with 2^32 map objects", change: (s) => void s.writeUInt32LE(0xffff_ffff, 60), message: /counts/ },
  { what: "with 2^32 shards", change: (s) => void s.writeUInt32LE(0xffff_ffff, 64), message: /counts/ },
  { what: "with a tail it does not have", change: (s) => void s.writeUInt32LE(0xffff_ffff, 68), message: /counts/ },
  {
    what: "with a map object of lineage 2 of 1",
    change: (s) => void s.writeUInt8(2, 96 + 16),
    message: /unknown lineage/,
  },
  { what: "with shards out of order", change: (s) => void s.writeUInt32LE(131_071, SHARDS_AT), message: /in order/ },
  { what: "with a shard outside", change: (s) => void s.writeUInt32LE(131_072, SHARDS_AT + 16), message: /outside/ },
  {
    what: "with a shard in map object 2 of 2",
    change: (s) => void s.writeUInt8(2, SHARDS_AT + 4),
    message: /no map object/,
  },
  { what: "with a shard in an envelope", change: (s) => void s.writeUInt32LE(63, SHARDS_AT + 8), message: /no place/ },
  { what: "with an empty page", change: (s) => void s.writeUInt32LE(0, SHARDS_AT + 12), message: /no place/ },
  { what: "cut short", change: (section) => section.subarray(0, 95), message: /too short/ },
];

for (const { what, change, message } of refused) {
  test(`a checkpoint ${what} is refused`, () => {
    const bytes = withSection(encodeCheckpoint(identity, sampleCheckpoint()), change);
    assert.throws(
      () => decodeCheckpoint(bytes, identity),
      (error) => isKind(error, "corrupt") && message.test(error.message),
    );
  });
}

test("bytes behind a checkpoint are refused", () => {
  const bytes = Buffer.concat([encodeCheckpoint(identity, sampleCheckpoint()), Buffer.alloc(1)]);
  assert.throws(() => decodeCheckpoint(bytes, identity), /behind its end/);
});

test("a writer cannot write what a reader refuses", () => {
  const checkpoint = sampleCheckpoint();
  assert.throws(() => encodeCheckpoint(identity, { ...checkpoint, sizeBytes: 1 }), AssertionError);
  assert.throws(() => encodeCheckpoint(identity, { ...checkpoint, lineage: [] }), AssertionError);
});
