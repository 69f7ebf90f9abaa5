/** CRC-32 by either implementation: known values, the same numbers, and nothing taken that computes others. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32 as zlibCrc32 } from "node:zlib";
import { crc32, quickenChecksums } from "../../src/base/checksum.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";

/** The check value of the CRC catalogue, and of nothing at all. */
function mustBeCrc32(): void {
  const digits = Buffer.from("123456789");
  assert.equal(crc32(digits), 0xcbf43926);
  assert.equal(crc32(new Uint8Array(0)), 0);
  assert.equal(crc32(digits.subarray(4), crc32(digits.subarray(0, 4))), 0xcbf43926);
}

test("an implementation that cannot be loaded, or computes something else, is not taken", async () => {
  const lying = (bytes: Uint8Array, previous: number): number =>
    bytes.length === 4108 ? 1 : zlibCrc32(bytes, previous);
  assert.match((await quickenChecksums(() => Promise.resolve({ crc32: lying }))) ?? "", /other checksums/);
  mustBeCrc32();
  assert.notEqual(crc32(Buffer.alloc(4108)), 1);
  assert.match((await quickenChecksums(() => Promise.reject(new Error("no such module")))) ?? "", /no such module/);
  mustBeCrc32();
});

test("the processor's instructions give the same numbers, at any length, place and start", async () => {
  assert.equal(await quickenChecksums(), undefined);
  mustBeCrc32();
  const random = new SeededRandom(1);
  const bytes = Buffer.from(random.bytes(1 << 20));
  for (let trial = 0; trial < 20_000; trial += 1) {
    const from = random.below(4096);
    const length = trial % 100 === 0 ? random.below(bytes.length - from) : random.below(6000);
    const part = trial % 2 === 0 ? bytes.subarray(from, from + length) : new Uint8Array(bytes.buffer, from, length);
    const previous = random.below(2 ** 32);
    assert.equal(crc32(part, previous), zlibCrc32(part, previous), `${length} bytes at ${from} after ${previous}`);
  }
});
