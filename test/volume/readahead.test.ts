/** Readahead: who counts as sequential, and how much is fetched for them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, Readahead } from "../../src/volume/readahead.ts";

const KIB = 1024;
const GIB = 1024 ** 3;

test("a sequential reader is ahead of by 128 KiB to 8 MiB, without gaps and without repetition", () => {
  for (const step of [4 * KIB, 64 * KIB, 1024 * KIB]) {
    const readahead = new Readahead(10 * GIB);
    let aheadEnd = 0;
    let largest = 0;
    for (let offset = 0; offset < 256 * 1024 * KIB; offset += step) {
      const range = readahead.observe(offset, step);
      if (range === undefined) continue;
      if (aheadEnd > 0 && aheadEnd >= offset + step) assert.equal(range.offset, aheadEnd);
      assert.ok(range.offset >= offset + step);
      aheadEnd = range.offset + range.length;
      largest = Math.max(largest, aheadEnd - (offset + step));
      assert.ok(aheadEnd - (offset + step) <= MAX_WINDOW_BYTES);
    }
    assert.equal(largest, MAX_WINDOW_BYTES, `step=${step}`);
  }
});

test("the first readahead comes after 64 KiB in sequence and is 128 KiB", () => {
  const readahead = new Readahead(GIB);
  for (let offset = 0; offset < 60 * KIB; offset += 4 * KIB)
    assert.equal(readahead.observe(offset, 4 * KIB), undefined);
  assert.deepEqual(readahead.observe(60 * KIB, 4 * KIB), { offset: 64 * KIB, length: MIN_WINDOW_BYTES });
});

test("four readers at a time are followed, a fifth costs the one that was idle longest", () => {
  const readahead = new Readahead(100 * GIB);
  const ranges = new Map<number, number>();
  const turn = (streams: readonly number[], offset: number): void => {
    for (const stream of streams) {
      if (readahead.observe(stream * 10 * GIB + offset, 32 * KIB) === undefined) continue;
      ranges.set(stream, (ranges.get(stream) ?? 0) + 1);
    }
  };
  for (let offset = 0; offset < 1024 * KIB; offset += 32 * KIB) turn([0, 1, 2, 3], offset);
  assert.deepEqual(
    [...ranges.keys()].toSorted((left, right) => left - right),
    [0, 1, 2, 3],
  );
  readahead.observe(9 * 10 * GIB, 4 * KIB);
  assert.equal(readahead.observe(1024 * KIB, 32 * KIB), undefined, "the first of the four gave way");
});

test("requests that overtake each other within 128 KiB are still one reader", () => {
  const readahead = new Readahead(GIB);
  const random = new SeededRandom(4);
  let bytes = 0;
  for (let group = 0; group < 100; group += 1) {
    const order = [0, 1, 2, 3].toSorted(() => random.fraction() - 0.5);
    for (const place of order) bytes += readahead.observe((group * 4 + place) * 32 * KIB, 32 * KIB)?.length ?? 0;
  }
  assert.ok(bytes >= 12_000 * KIB, `bytes=${bytes}`);
});

test("random readers, and readers of one place, cause no readahead", () => {
  const random = new SeededRandom(2);
  const readahead = new Readahead(100 * GIB);
  for (let turn = 0; turn < 100_000; turn += 1) {
    assert.equal(readahead.observe(random.below(25 * 1024 * 1024) * 4096, 4096), undefined);
  }
  for (let turn = 0; turn < 100; turn += 1) assert.equal(readahead.observe(8192, 4096), undefined);
});

test("nothing beyond the end of the volume is asked for", () => {
  const end = 1000 * KIB;
  const readahead = new Readahead(end);
  let aheadEnd = 0;
  for (let offset = 0; offset < end; offset += 4 * KIB) {
    const range = readahead.observe(offset, 4 * KIB);
    if (range === undefined) continue;
    assert.ok(range.length > 0);
    aheadEnd = range.offset + range.length;
  }
  assert.equal(aheadEnd, end);
});
