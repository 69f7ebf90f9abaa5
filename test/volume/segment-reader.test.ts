/** The segment reader: the right bytes, by as few GETs as promised, counted at the store. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Timer } from "../../src/base/clock.ts";
import { isKind, OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ByteRange, ObjectStore, RequestOptions } from "../../src/store/object-store.ts";
import { BlockCache } from "../../src/volume/block-cache.ts";
import { PART_BYTES } from "../../src/volume/cache-index.ts";
import type { VolumeUid } from "../../src/volume/identity.ts";
import { ReadBudget } from "../../src/volume/read-budget.ts";
import { SegmentReader, type StoredObject } from "../../src/volume/segment-reader.ts";
import { StillClock } from "./still-clock.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

type Answer = Awaited<ReturnType<ObjectStore["getRange"]>>;

/** A memory store that counts its ranges, and can hold, change or fail its answers. */
class CountingStore extends MemoryStore {
  readonly gets: string[] = [];
  /** Answers wait for this. */
  gate: Promise<void> = Promise.resolve();
  change: (answer: Answer, key: string) => Answer = (answer) => answer;

  override async getRange(key: string, range: ByteRange, options?: RequestOptions): Promise<Answer> {
    this.gets.push(`${range.offset / PART_BYTES}+${range.length / PART_BYTES}`);
    await this.gate;
    return this.change(await super.getRange(key, range, options), key);
  }

  /** Holds all answers until the function it returns is called. */
  hold(): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.gate = promise;
    return resolve;
  }
}

interface Bench {
  clock: StillClock;
  store: CountingStore;
  cache: BlockCache;
  reader: SegmentReader;
  budget: ReadBudget;
  disk: MemoryDisk;
  abort: AbortController;
  object: StoredObject;
  body: Buffer;
}

async function bench(options: { sizeBytes?: number; cached?: boolean; budgetBytes?: number } = {}): Promise<Bench> {
  const store = new CountingStore();
  const clock = new StillClock();
  const disk = new MemoryDisk();
  const log = nullLog;
  const cacheDisk = options.cached === false ? undefined : disk;
  const cache = await BlockCache.open({ disk: cacheDisk, capacityBytes: 64 * MIB, clock, log });
  const budget = new ReadBudget(options.budgetBytes ?? 32 * MIB);
  const abort = new AbortController();
  const reader = new SegmentReader({ store, cache, budget, clock, log, signal: abort.signal });
  const object = named(1);
  const body = new SeededRandom(1).bytes(options.sizeBytes ?? 4 * MIB);
  await store.putIfAbsent(object.key, [body]);
  return { clock, store, cache, reader, budget, disk, abort, object, body };
}

function named(sequence: number): StoredObject {
  return { key: `v1/log/${sequence}`, uid: "1".repeat(32) as VolumeUid, epoch: 1, sequence, kind: "segment" };
}

async function check({ reader, object, body }: Bench, offset: number, length: number): Promise<void> {
  const bytes = await reader.read(object, offset, length);
  assert.ok(bytes.equals(body.subarray(offset, offset + length)), `offset=${offset} length=${length}`);
}

test("a read costs one GET of its parts, the next one none and no promise", async () => {
  const at = await bench();
  await check(at, 100_000, 4112);
  assert.deepEqual(at.store.gets, ["1+1"]);
  for (const settled of [false, true]) {
    if (settled) await at.cache.settled();
    const again = at.reader.read(at.object, 70_000, 40_000);
    assert.ok(again instanceof Buffer && again.equals(at.body.subarray(70_000, 110_000)));
    const frame = Buffer.alloc(4112);
    assert.ok(at.reader.readFrameSync(at.object, 100_000, frame));
    assert.ok(frame.equals(at.body.subarray(100_000, 104_112)));
  }
  assert.deepEqual(at.store.gets, ["1+1"]);
  assert.equal(at.reader.readFrameSync(at.object, 0, Buffer.alloc(10)), false);
  assert.equal(at.budget.usedBytes(), 0);
});

test("a hundred readers of one part share one GET, whenever they come", async () => {
  const at = await bench();
  const release = at.store.hold();
  const reads = Array.from({ length: 50 }, (_, index) => check(at, index * 1000, 4096));
  await new Promise(setImmediate);
  reads.push(...Array.from({ length: 50 }, (_, index) => check(at, index * 1000, 512)));
  release();
  await Promise.all(reads);
  assert.deepEqual(at.store.gets, ["0+1"]);
  assert.equal(at.reader.stats().joinedParts, 99);
});

test("reads of one turn become one GET up to a gap of 256 KiB, and what lies between is cached", async () => {
  const at = await bench();
  await Promise.all([check(at, 5 * PART_BYTES, 10), check(at, 0, 10), check(at, 11 * PART_BYTES, 10)]);
  assert.deepEqual(at.store.gets, ["0+6", "11+1"]);
  for (let part = 1; part < 5; part += 1) await check(at, part * PART_BYTES, PART_BYTES);
  assert.equal(at.store.gets.length, 2);
});

test("a reader of what lies between two others on their way joins them", async () => {
  const at = await bench();
  const release = at.store.hold();
  const reads = [check(at, 0, 10), check(at, 3 * PART_BYTES, 10)];
  await new Promise(setImmediate);
  reads.push(check(at, PART_BYTES, 2 * PART_BYTES));
  release();
  await Promise.all(reads);
  assert.deepEqual(at.store.gets, ["0+4"]);
});

test("a large read is cut into GETs of 2 MiB, and the object's short end is right", async () => {
  const at = await bench({ sizeBytes: 5 * MIB + 12_345 });
  await check(at, 100, 5 * MIB + 12_245);
  assert.deepEqual(at.store.gets, ["0+32", "32+32", "64+17"]);
  await at.cache.settled();
  await check(at, 5 * MIB, 12_345);
  assert.equal(at.store.gets.length, 3);
});

test("parts that are cached are not fetched again for a read that needs others", async () => {
  const at = await bench();
  await check(at, 0, 10);
  await check(at, 20 * PART_BYTES, 10);
  await check(at, 0, 21 * PART_BYTES);
  assert.deepEqual(at.store.gets, ["0+1", "20+1", "1+19"]);
});

test("any mix of reads at any time yields the right bytes, with and without a cache", async () => {
  const read = fc.record({ offset: fc.nat(MIB - 1), length: fc.integer({ min: 1, max: 300_000 }), wait: fc.boolean() });
  const property = fc.asyncProperty(fc.array(read, { maxLength: 30 }), fc.boolean(), async (reads, cached) => {
    const at = await bench({ sizeBytes: MIB, cached, budgetBytes: 300_000 });
    const pending: Promise<void>[] = [];
    for (const { offset, length, wait } of reads) {
      if (length % 7 === 0) at.reader.prefetch(at.object, offset, Math.min(length, MIB - offset));
      pending.push(check(at, offset, Math.min(length, MIB - offset)));
      if (wait) await pending.at(-1);
    }
    await Promise.all(pending);
    assert.equal(at.budget.usedBytes(), 0);
    if (cached) assert.ok(at.store.gets.length <= 16, "no part is fetched twice");
  });
  await fc.assert(property, { numRuns: 60 });
});

test("readahead is fetched once, joined by those who come for it, and never asked for again", async () => {
  const at = await bench();
  const release = at.store.hold();
  at.reader.prefetch(at.object, 0, MIB);
  at.reader.prefetch(at.object, 0, MIB);
  await new Promise(setImmediate);
  const reading = check(at, 500_000, 100_000);
  release();
  await reading;
  at.reader.prefetch(at.object, 0, MIB);
  await check(at, 0, MIB);
  assert.deepEqual(at.store.gets, ["0+16"]);
  assert.equal(at.reader.stats().prefetchedBytes, MIB);
});

test("readahead of the same turn does not make the GET longer that somebody waits for", async () => {
  const at = await bench();
  const reading = check(at, 0, 10);
  at.reader.prefetch(at.object, 0, MIB);
  await reading;
  assert.deepEqual(at.store.gets, ["0+1", "1+15"]);
});

test("a body's memory is free as soon as it was copied, unless it is a piece of somebody else's", async () => {
  const at = await bench({ sizeBytes: 20 * PART_BYTES });
  const bodies: Buffer[] = [];
  const larger = Buffer.alloc(3 * PART_BYTES);
  at.store.change = (answer) => {
    if (answer === undefined) return undefined;
    if (bodies.length === 0) answer.bytes.copy((answer.bytes = larger.subarray(PART_BYTES, 2 * PART_BYTES)));
    else answer.bytes = Buffer.from(answer.bytes);
    bodies.push(answer.bytes);
    return answer;
  };
  await check(at, 5, 100);
  await Promise.all([check(at, 2 * PART_BYTES, PART_BYTES), check(at, 2 * PART_BYTES + 7, 2 * PART_BYTES)]);
  at.reader.prefetch(at.object, 8 * PART_BYTES, 2 * PART_BYTES);
  await at.clock.yield();
  await at.reader.refetch(at.object, 12 * PART_BYTES, PART_BYTES, () => true);
  await at.clock.yield();
  assert.deepEqual(
    bodies.map(({ buffer }) => (buffer as ArrayBuffer).detached),
    [false, true, true, true],
  );
  assert.equal(larger.length, 3 * PART_BYTES);
  assert.equal(at.budget.usedBytes(), 0);
  await check(at, 0, 14 * PART_BYTES);
});

test("a read and a refetch past the end of an object are corrupt, and give their budget back", async () => {
  const at = await bench({ sizeBytes: PART_BYTES, budgetBytes: 4 * PART_BYTES });
  for (let count = 0; count < 5; count += 1) {
    const past = async (): Promise<unknown> => at.reader.read(at.object, PART_BYTES - 10, 20);
    await assert.rejects(past, (error) => isKind(error, "corrupt"));
    const again = at.reader.refetch(at.object, PART_BYTES - 10, 20, () => true);
    await assert.rejects(again, (error) => isKind(error, "corrupt"));
    await at.clock.yield();
    assert.equal(at.budget.usedBytes(), 0);
  }
});

test("readahead leaves half of the budget alone and gives up quietly, a reader waits for its turn", async () => {
  const at = await bench({ budgetBytes: 8 * PART_BYTES });
  const release = at.store.hold();
  at.reader.prefetch(at.object, 0, 4 * PART_BYTES);
  await new Promise(setImmediate);
  at.reader.prefetch(at.object, 20 * PART_BYTES, PART_BYTES);
  await new Promise(setImmediate);
  assert.equal(at.reader.stats().skippedBytes, PART_BYTES);
  const reads = [check(at, 10 * PART_BYTES, 4 * PART_BYTES), check(at, 20 * PART_BYTES, 10)];
  await new Promise(setImmediate);
  assert.deepEqual(at.store.gets, ["0+4", "10+4"]);
  release();
  await Promise.all(reads);
  assert.deepEqual(at.store.gets, ["0+4", "10+4", "20+1"]);
  assert.equal(at.budget.usedBytes(), 0);
});

test("a read larger than the budget waits for all of it and is served", async () => {
  const at = await bench({ budgetBytes: PART_BYTES });
  await Promise.all([check(at, 0, 10 * PART_BYTES), check(at, 30 * PART_BYTES, 10)]);
  assert.equal(at.budget.usedBytes(), 0);
});

test("without a cache nothing is fetched ahead", async () => {
  const at = await bench({ cached: false });
  at.reader.prefetch(at.object, 0, MIB);
  await new Promise(setImmediate);
  assert.deepEqual(at.store.gets, []);
});

test("a missing object, one that ends too early and a short body are corrupt, and the error names the object", async () => {
  const at = await bench({ sizeBytes: 100_000 });
  const corrupt = (error: unknown): boolean => isKind(error, "corrupt") && error.message.includes("key=v1/log/");
  await assert.rejects(async () => await at.reader.read(named(2), 0, 10), corrupt);
  await assert.rejects(async () => await at.reader.read(at.object, 99_999, 2), corrupt);
  await assert.rejects(async () => await at.reader.read(at.object, 200_000, 2), corrupt);
  at.store.change = (answer) => answer && { ...answer, bytes: answer.bytes.subarray(1) };
  await assert.rejects(async () => await at.reader.read(at.object, 0, 10), corrupt);
  at.store.change = (answer) => answer;
  await check(at, 0, 100_000);
  assert.equal(at.budget.usedBytes(), 0);
});

test("an error reaches all who wait, and the next read asks again", async () => {
  const at = await bench();
  at.store.change = () => {
    throw new OperationError("unavailable", "injected");
  };
  const reads = [check(at, 0, 10), check(at, 5, 10), check(at, 60_000, 10_000)];
  for (const result of await Promise.allSettled(reads)) {
    assert.ok(result.status === "rejected" && isKind(result.reason, "unavailable"));
  }
  at.reader.prefetch(at.object, 0, MIB);
  await new Promise(setImmediate);
  at.store.change = (answer) => answer;
  await check(at, 0, 10);
  assert.equal(at.budget.usedBytes(), 0);
});

test("when the volume closes, what waits ends with an error and nothing new is asked", async () => {
  const at = await bench({ budgetBytes: PART_BYTES });
  const release = at.store.hold();
  const first = check(at, 0, 10);
  const second = check(at, 20 * PART_BYTES, 10);
  await new Promise(setImmediate);
  at.abort.abort();
  release();
  for (const result of await Promise.allSettled([first, second])) {
    assert.ok(result.status === "rejected" && isKind(result.reason, "unavailable"), JSON.stringify(result));
  }
  assert.deepEqual(at.store.gets, ["0+1"]);
  assert.equal(at.budget.usedBytes(), 0);
});

test("rot in the cache is healed from S3 by refetch, after a frame read and after any other", async () => {
  const at = await bench();
  await check(at, 0, 2 * PART_BYTES);
  await at.cache.settled();
  const file = await at.disk.open("cache-blocks");
  for (const position of [5000, PART_BYTES + 5000]) file.writeSync(Buffer.from("rot"), position);
  const rotten = await at.reader.read(at.object, 4112, 4112);
  assert.notDeepEqual(rotten, at.body.subarray(4112, 8224), "nobody has looked at these bytes yet");
  const frame = Buffer.alloc(4112);
  assert.ok(at.reader.readFrameSync(at.object, PART_BYTES + 4112, frame));
  assert.notDeepEqual(frame, at.body.subarray(PART_BYTES + 4112, PART_BYTES + 8224));
  for (const offset of [4112, PART_BYTES + 4112]) {
    const healed = await at.reader.refetch(at.object, offset, 4112, () => true);
    assert.ok(healed.equals(at.body.subarray(offset, offset + 4112)));
  }
  await check(at, 0, 2 * PART_BYTES);
  assert.deepEqual(at.store.gets, ["0+2", "0+1", "1+1"]);
  assert.equal(at.cache.stats().rotten, 2);
});

test("refetch goes past the cache and past what is on its way, over many parts", async () => {
  const at = await bench();
  await check(at, 0, 4 * MIB);
  const before = at.store.gets.length;
  const bytes = await at.reader.refetch(at.object, 1000, 3 * MIB, () => true);
  assert.ok(bytes.equals(at.body.subarray(1000, 1000 + 3 * MIB)));
  assert.deepEqual(at.store.gets.slice(before), ["0+32", "32+17"]);
  await assert.rejects(
    at.reader.refetch(at.object, 4 * MIB - 1, 2, () => true),
    (error) => isKind(error, "corrupt"),
  );
});

const unwanted = (): boolean => false;

test("an uploaded object is read without a GET", async () => {
  const at = await bench({ sizeBytes: 300_001 });
  const body = Buffer.from(at.body);
  await at.reader.admit(at.object, body, unwanted);
  body.fill(0);
  await check(at, 0, 300_001);
  assert.deepEqual(at.store.gets, []);
});

test("uploads larger than the write buffers are admitted whole, and read from memory meanwhile", async () => {
  const at = await bench({ sizeBytes: 20 * MIB });
  const other: StoredObject = named(2);
  const admitted = [at.object, other].map((object) => at.reader.admit(object, at.body, unwanted));
  const last = at.body.subarray(20 * MIB - 4112);
  const frame = Buffer.alloc(4112);
  for (const object of [at.object, other]) {
    assert.ok(at.reader.readFrameSync(object, 20 * MIB - 4112, frame));
    assert.ok(frame.equals(last));
  }
  await Promise.all(admitted);
  for (const object of [at.object, other]) await check({ ...at, object }, 0, 20 * MIB);
  assert.deepEqual(at.store.gets, []);
});

test("where memory is needed for uploads, what the disk of the cache has not taken is left out", async () => {
  const at = await bench({ sizeBytes: 20 * MIB });
  const isWanted = (): boolean => {
    at.clock.ms += 1000;
    return true;
  };
  await at.reader.admit(at.object, at.body, isWanted);
  await at.cache.settled();
  await check(at, 0, MIB);
  assert.deepEqual(at.store.gets, []);
  await check(at, 19 * MIB, PART_BYTES);
  assert.deepEqual(at.store.gets, ["304+1"]);
});

test("a cache disk that hangs gives an upload's memory back when it is wanted, and when the volume ends", async () => {
  for (const ending of ["wanted", "closing"] as const) {
    const at = await bench({ sizeBytes: 20 * MIB });
    const alarms: (() => void)[] = [];
    Object.defineProperty(at.cache, "room", { value: () => new Promise(() => {}) });
    const after = (_ms: number, callback: () => void): Timer => {
      alarms.push(callback);
      return { cancel() {} };
    };
    Object.assign(at.clock, { after });
    let isWanted = false;
    let isBack = false;
    const admitted = at.reader.admit(at.object, at.body, () => isWanted).then(() => (isBack = true));
    const pass = async (): Promise<void> => {
      await new Promise(setImmediate);
      at.clock.ms += 300;
      for (const ring of alarms.splice(0)) ring();
      await new Promise(setImmediate);
    };
    await pass();
    await pass();
    assert.equal(isBack, false, "nobody needs the memory");
    if (ending === "wanted") isWanted = true;
    else at.abort.abort();
    await pass();
    assert.equal(isBack, true, ending);
    await admitted;
  }
});

test("a cached frame that the disk must be waited for is read off the thread, and is no GET and one hit", async () => {
  const at = await bench();
  await check(at, 0, 10 * PART_BYTES);
  await at.cache.settled();
  at.disk.setInMemory(() => false);
  const gets = at.store.gets.length;
  const { hits, misses } = at.cache.stats();
  const frames = Array.from({ length: 20 }, (_, index) => 1000 + index * 8224);
  const read = await Promise.all(
    frames.map(async (offset) => {
      assert.equal(at.reader.readFrameSync(at.object, offset, Buffer.alloc(4112)), false);
      return await at.reader.fetch(at.object, offset, 4112);
    }),
  );
  for (const [index, offset] of frames.entries()) {
    assert.ok(read[index].equals(at.body.subarray(offset, offset + 4112)), `offset=${offset}`);
  }
  assert.equal(at.store.gets.length, gets);
  const inTwo = frames.filter((offset) => offset % PART_BYTES > PART_BYTES - 4112).length;
  assert.equal(at.cache.stats().hits, hits + frames.length + inTwo);
  assert.equal(at.cache.stats().misses, misses);
});

test("on a slow disk cached reads go off the thread and are still no GETs", async () => {
  const at = await bench();
  await check(at, 0, 10 * PART_BYTES);
  await at.cache.settled();
  const gets = at.store.gets.length;
  Object.defineProperty(at.cache, "readsAreSlow", { value: () => true });
  assert.equal(at.reader.readFrameSync(at.object, 0, Buffer.alloc(10)), false);
  await check(at, 1000, 9 * PART_BYTES);
  assert.equal(at.store.gets.length, gets);
});
