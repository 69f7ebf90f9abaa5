/** The envelope: a round trip, and every way in which an object can be another one than its key says. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKind } from "../../../src/base/errors.ts";
import {
  decodeEnvelope,
  encodeEnvelope,
  ENVELOPE_BYTES,
  type ObjectKind,
  peekEnvelope,
} from "../../../src/volume/format/envelope.ts";
import { IDENTITY_BYTES } from "../../../src/store/object-store.ts";
import type { VolumeUid } from "../../../src/volume/identity.ts";
import { header, NONCE, UID } from "./samples.ts";

const kind = fc.constantFrom<ObjectKind>("meta", "segment", "map", "checkpoint", "location", "gc-intent");
const sample = { kind: "epoch", uid: UID, epoch: 5, sequence: 6, nonce: NONCE } as const;

test("an envelope is exactly what the store takes for the identity of a write", () => {
  assert.equal(ENVELOPE_BYTES, IDENTITY_BYTES);
});

test("decoding an encoded envelope gives the same header and section", () => {
  fc.assert(
    fc.property(header, kind, fc.uint8Array({ maxLength: 200 }), fc.nat(40), (fields, objectKind, section, more) => {
      const bytes = Buffer.concat([encodeEnvelope({ ...fields, kind: objectKind }, section), Buffer.alloc(more, 1)]);
      const decoded = decodeEnvelope(bytes, { kind: objectKind, ...fields });
      assert.deepEqual(decoded, { ...fields, kind: objectKind, section: Buffer.from(section) });
      assert.deepEqual(peekEnvelope(bytes), { ...fields, kind: objectKind, sectionLength: section.length });
    }),
  );
});

test("every single changed bit of envelope and section is found", () => {
  const good = encodeEnvelope(sample, Buffer.from("section"));
  for (let bit = 0; bit < good.length * 8; bit += 1) {
    const bytes = Buffer.from(good);
    bytes[bit >> 3] ^= 1 << (bit & 7);
    assert.throws(
      () => decodeEnvelope(bytes, { kind: "epoch" }),
      (error) => isKind(error, "corrupt"),
      `bit ${bit}`,
    );
  }
});

test("every truncation is found", () => {
  const good = encodeEnvelope(sample, Buffer.from("section"));
  for (let length = 0; length < good.length; length += 1) {
    assert.throws(
      () => decodeEnvelope(good.subarray(0, length), { kind: "epoch" }),
      (error) => isKind(error, "corrupt"),
    );
  }
});

test("an object of another kind, volume, epoch or sequence is corrupt, whatever its checksum says", () => {
  const bytes = encodeEnvelope(sample, Buffer.alloc(0));
  for (const other of [
    { kind: "map" },
    { kind: "epoch", uid: "0".repeat(32) as VolumeUid },
    { kind: "epoch", epoch: 6 },
    { kind: "epoch", sequence: 5 },
  ] as const) {
    assert.throws(() => decodeEnvelope(bytes, other), /not the one its key names/);
  }
});

test("a newer format version is refused by name", () => {
  const bytes = encodeEnvelope(sample, Buffer.alloc(0));
  bytes.writeUInt16LE(2, 4);
  assert.throws(() => peekEnvelope(bytes), /written by a newer s3block; upgrade/);
});

test("a number that needs more than 53 bits is corrupt", () => {
  const bytes = encodeEnvelope(sample, Buffer.alloc(0));
  bytes.writeBigUInt64LE(2n ** 53n, 24);
  assert.throws(
    () => peekEnvelope(bytes),
    (error) => isKind(error, "corrupt"),
  );
});
