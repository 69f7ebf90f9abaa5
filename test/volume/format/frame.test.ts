/** Raw frames: what their checksum binds, and that changing the seed equals sealing anew. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import {
  FRAME_HEADER_BYTES,
  isIntactRawFrame,
  journalFrameSeed,
  RAW_FRAME_BYTES,
  resealRawFrame,
  sealRawFrame,
  segmentFrameSeed,
} from "../../../src/volume/format/frame.ts";

const uid = "000102030405060708090a0b0c0d0e0f";

test("resealing equals sealing with the new seed", () => {
  const random = new SeededRandom(5);
  for (let turn = 0; turn < 200; turn += 1) {
    const frame = random.bytes(RAW_FRAME_BYTES);
    const lba = random.below(2 ** 20) * 2 ** 13 + turn;
    const [before, after] = [random.uint32(), random.uint32()];
    sealRawFrame(frame, 0, lba, before);
    const expected = Buffer.from(frame);
    sealRawFrame(expected, 0, lba, after);
    resealRawFrame(frame, 0, before, after);
    assert.deepEqual(frame, expected);
  }
});

test("a frame is intact only in its own place, for its own block, with every byte as it was", () => {
  const frame = new SeededRandom(6).bytes(RAW_FRAME_BYTES);
  const seed = segmentFrameSeed(uid, 3, 9);
  sealRawFrame(frame, 0, 77, seed);
  assert.ok(isIntactRawFrame(frame, 0, 77, seed));
  assert.ok(!isIntactRawFrame(frame, 0, 78, seed));
  for (const other of [
    segmentFrameSeed(uid, 3, 10),
    segmentFrameSeed(uid, 4, 9),
    segmentFrameSeed(uid.replace("0f", "1f"), 3, 9),
  ]) {
    assert.ok(!isIntactRawFrame(frame, 0, 77, other));
  }
  for (let at = 0; at < RAW_FRAME_BYTES; at += at < FRAME_HEADER_BYTES ? 1 : 97) {
    frame[at] ^= 0x40;
    assert.ok(!isIntactRawFrame(frame, 0, 77, seed), `byte ${at}`);
    frame[at] ^= 0x40;
  }
});

test("journal positions up to many terabytes have seeds of their own", () => {
  const seeds = new Set<number>();
  for (let index = 0; index < 1000; index += 1) seeds.add(journalFrameSeed(12345, 4096 + index * 64 * 1024 * 1024));
  for (let index = 1; index < 100; index += 1) seeds.add(journalFrameSeed(12345, 4096 + index * 2 ** 36));
  assert.equal(seeds.size, 1099);
});
