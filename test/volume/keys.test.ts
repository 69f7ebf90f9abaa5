/** Keys: what is built parses back, sorts as its numbers do, and nothing else parses. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Epoch, SegmentSeq, VolumeId, VolumeUid } from "../../src/volume/identity.ts";
import {
  checkpointKey,
  checkpointPrefix,
  epochKey,
  locationKey,
  LOG_PREFIX_COUNT,
  logPrefix,
  mapKey,
  metaKey,
  metaPrefix,
  nameKey,
  namePrefix,
  nodeKey,
  type ParsedKey,
  parseKey,
  publicationKey,
  removalKey,
  segmentKey,
  uidPrefix,
  volumePrefix,
} from "../../src/volume/keys.ts";

const number53 = fc.oneof(fc.nat(300), fc.bigInt({ min: 0n, max: 2n ** 53n - 1n }).map(Number));
const hex = (length: number): fc.Arbitrary<string> =>
  fc
    .array(fc.constantFrom(...Array.from("0123456789abcdef")), { minLength: length, maxLength: length })
    .map((all) => all.join(""));
const uid = hex(32).map((text) => text as VolumeUid);
const id = fc.stringMatching(/^[a-z0-9][a-z0-9-]{0,62}$/).map((text) => text as VolumeId);
const epoch = number53.map((value) => value as Epoch);
const sequence = number53.map((value) => value as SegmentSeq);
const plain = { noNullPrototype: true };

const parsed: fc.Arbitrary<ParsedKey> = fc.oneof(
  fc.record({ kind: fc.constant("name" as const), id, number: number53 }, plain),
  fc.record({ kind: fc.constant("meta" as const), id, uid, number: number53 }, plain),
  fc.record({ kind: fc.constant("removal" as const), id, uid, number: fc.constant(1) }, plain),
  fc.record({ kind: fc.constant("epoch" as const), id, uid, epoch }, plain),
  fc.record({ kind: fc.constantFrom("checkpoint" as const, "map" as const), id, uid, epoch, number: number53 }, plain),
  fc.record({ kind: fc.constant("publication" as const), id, uid, number: number53 }, plain),
  fc.record({ kind: fc.constant("segment" as const), uid, epoch, sequence }, plain),
  fc.record({ kind: fc.constant("location" as const), hash: hex(16) }, plain),
  fc.record({ kind: fc.constant("node" as const), hash: hex(32) }, plain),
);

function build(key: ParsedKey): string {
  switch (key.kind) {
    case "name":
      return nameKey(key.id, key.number);
    case "meta":
      return metaKey(key, key.number);
    case "removal":
      return removalKey(key);
    case "epoch":
      return epochKey(key, key.epoch);
    case "checkpoint":
      return checkpointKey(key, key.epoch, key.number);
    case "map":
      return mapKey(key, key.epoch, key.number);
    case "publication":
      return publicationKey(key, key.number);
    case "segment":
      return segmentKey(key.uid, key.epoch, key.sequence);
    case "location":
      return locationKey(key.hash);
    case "node":
      return nodeKey(key.hash);
  }
}

test("every key that is built parses back to what it was built from", () => {
  fc.assert(
    fc.property(parsed, (key) => assert.deepEqual(parseKey(build(key)), key)),
    { numRuns: 1000 },
  );
});

test("keys are as they always were", () => {
  const volume = { id: "vol-1" as VolumeId, uid: "00112233445566778899aabbccddeeff" as VolumeUid };
  const under = "v1/volumes/vol-1/00112233445566778899aabbccddeeff";
  assert.equal(nameKey(volume.id, 1), "v1/volumes/vol-1/meta/0000000000000001");
  assert.equal(metaKey(volume, 2), `${under}/meta/0000000000000002`);
  assert.equal(removalKey(volume), `${under}/removal/0000000000000001`);
  assert.equal(epochKey(volume, 2 as Epoch), `${under}/epoch/0000000000000002`);
  assert.equal(checkpointKey(volume, 2 as Epoch, 3), `${under}/checkpoint/0000000000000002/0000000000000003`);
  assert.equal(mapKey(volume, 2 as Epoch, 255), `${under}/map/0000000000000002/00000000000000ff`);
  assert.equal(publicationKey(volume, 2 ** 53 - 1), `${under}/publication/001fffffffffffff`);
  assert.equal(
    segmentKey(volume.uid, 2 as Epoch, 0x1234 as SegmentSeq),
    "v1/log/34/00112233445566778899aabbccddeeff/0000000000000002/0000000000001234",
  );
  assert.equal(locationKey("0123456789abcdef"), "v1/locations/0123456789abcdef");
  assert.equal(nodeKey(volume.uid), "v1/nodes/00112233445566778899aabbccddeeff");
});

test("a text that differs in one place is another key or none, never a second spelling", () => {
  const noise = fc.constantFrom("", "/", "0", "f", "F", "g", ".", "..", "%2f", "\0", "\n", "é", "v1/");
  fc.assert(
    fc.property(parsed, fc.nat(), fc.nat(2), noise, (key, where, removed, inserted) => {
      const good = build(key);
      const at = where % (good.length + 1);
      const text = good.slice(0, at) + inserted + good.slice(at + removed);
      const found = parseKey(text);
      if (found !== undefined) assert.equal(build(found), text);
    }),
    { numRuns: 5000 },
  );
});

test("arbitrary text does not parse", () => {
  fc.assert(fc.property(fc.string({ unit: "binary" }), (text) => assert.equal(parseKey(text), undefined)));
  const tooLarge = "v1/volumes/vol-1/meta/0020000000000000";
  const reserved = "v1/volumes/vol-1/00112233445566778899aabbccddeeff/snapshot/0000000000000001";
  const wrongSpread = "v1/log/33/00112233445566778899aabbccddeeff/0000000000000002/0000000000001234";
  for (const text of ["", "v1", "v1/volumes/vol-1/meta", tooLarge, reserved, wrongSpread]) {
    assert.equal(parseKey(text), undefined, text);
  }
});

test("plain byte order of keys is the order of their numbers", () => {
  fc.assert(
    fc.property(id, number53, number53, (volumeId, one, other) => {
      const inOrder = nameKey(volumeId, one) < nameKey(volumeId, other);
      assert.equal(inOrder, one < other);
    }),
  );
});

test("every key lies under the prefixes by which it is listed", () => {
  fc.assert(
    fc.property(id, uid, epoch, sequence, (volumeId, volumeUid, at, number) => {
      const volume = { id: volumeId, uid: volumeUid };
      assert.ok(nameKey(volumeId, number).startsWith(namePrefix(volumeId)));
      assert.ok(metaKey(volume, number).startsWith(metaPrefix(volume)));
      assert.ok(removalKey(volume).startsWith(uidPrefix(volume)));
      assert.ok(uidPrefix(volume).startsWith(volumePrefix(volumeId)));
      assert.ok(epochKey(volume, at).startsWith(uidPrefix(volume)));
      assert.ok(checkpointPrefix(volume, at).startsWith(checkpointPrefix(volume)));
      assert.ok(checkpointKey(volume, at, number).startsWith(checkpointPrefix(volume, at)));
      assert.ok(mapKey(volume, at, number).startsWith(uidPrefix(volume)));
      assert.ok(segmentKey(volumeUid, at, number).startsWith(logPrefix(volumeUid, number % LOG_PREFIX_COUNT)));
    }),
  );
});
