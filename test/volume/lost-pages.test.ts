/** The block cache on a disk that has lost pages of its file from memory: what it reads to answer one read. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { BlockCache } from "../../src/volume/block-cache.ts";
import { type ObjectIdentity, PART_BYTES } from "../../src/volume/cache-index.ts";
import type { VolumeUid } from "../../src/volume/identity.ts";
import { StillClock } from "./still-clock.ts";

const PAGE_BYTES = 4096;
const PARTS = 64;
const object = (sequence: number): ObjectIdentity => ({
  uid: "0".repeat(32) as VolumeUid,
  epoch: 1,
  sequence,
  kind: "segment",
});
const content = new SeededRandom(5).bytes(PARTS * PART_BYTES);

/** A full cache whose disk remembers pages that were read, until they are lost. */
class Lossy {
  readonly cache: BlockCache;
  /** Lengths of the reads that found a page missing. */
  waited: number[] = [];
  readonly #pages: Set<number>;

  private constructor(cache: BlockCache, pages: Set<number>) {
    this.cache = cache;
    this.#pages = pages;
  }

  static async open(): Promise<Lossy> {
    const disk = new MemoryDisk();
    const options = { disk, capacityBytes: PARTS * PART_BYTES, clock: new StillClock(), log: nullLog };
    const cache = await BlockCache.open(options);
    for (let part = 0; part < PARTS; part += 1) {
      while (!cache.insert(object(1), part, content.subarray(part * PART_BYTES, (part + 1) * PART_BYTES))) {
        await cache.settled();
      }
    }
    await cache.settled();
    const pages = new Set<number>();
    const lossy = new Lossy(cache, pages);
    disk.setInMemory(({ position, length }) => pagesOf(position, length).every((page) => pages.has(page)));
    disk.setFault(({ operation, position, length }) => {
      if (operation !== "read") return;
      const missing = pagesOf(position, length).filter((page) => !pages.has(page));
      if (missing.length > 0) lossy.waited.push(length);
      for (const page of missing) pages.add(page);
    });
    return lossy;
  }

  lose(): void {
    this.#pages.clear();
    this.waited = [];
  }

  /** Whether it was there at once; else it is waited for. The bytes are right. */
  async read(offset: number, length: number): Promise<boolean> {
    const target = Buffer.alloc(length);
    const isAtOnce = this.cache.readSync(object(1), offset, target);
    if (!isAtOnce) assert.ok(await this.cache.read(object(1), offset, target));
    assert.ok(target.equals(content.subarray(offset, offset + length)));
    return isAtOnce;
  }
}

function pagesOf(position: number, length: number): number[] {
  const first = Math.floor(position / PAGE_BYTES);
  const last = Math.floor((position + length - 1) / PAGE_BYTES);
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

test("where most reads find their bytes in memory, one that does not brings its whole part there", async () => {
  const lossy = await Lossy.open();
  await lossy.read(0, PAGE_BYTES);
  for (let turn = 0; turn < 1000; turn += 1) assert.ok(await lossy.read(0, PAGE_BYTES));
  lossy.lose();
  assert.equal(await lossy.read(3 * PART_BYTES + 20_000, 4112), false);
  assert.deepEqual(lossy.waited, [PART_BYTES]);
  for (const within of [0, 30_000, 61_000]) assert.ok(await lossy.read(3 * PART_BYTES + within, 4112));
  assert.equal(await lossy.read(4 * PART_BYTES, 4112), false);
  await lossy.cache.close();
});

test("where most reads wait for the disk, they wait for what they want", async () => {
  const lossy = await Lossy.open();
  for (let turn = 0; turn < 1000; turn += 1) {
    lossy.lose();
    assert.equal(await lossy.read((turn % PARTS) * PART_BYTES, 4112), false);
    assert.deepEqual(lossy.waited, [4112]);
  }
  // Two of three are too few.
  let around = 0;
  for (let turn = 0; turn < 3000; turn += 1) {
    await lossy.read(0, PAGE_BYTES);
    await lossy.read(0, PAGE_BYTES);
    lossy.lose();
    await lossy.read(0, PAGE_BYTES);
    if (lossy.waited.includes(PART_BYTES)) around += 1;
  }
  assert.equal(around, 0);
  await lossy.cache.close();
});

test("who was warm for long is soon known to be so no more", async () => {
  const lossy = await Lossy.open();
  await lossy.read(0, PAGE_BYTES);
  for (let turn = 0; turn < 5000; turn += 1) await lossy.read(0, PAGE_BYTES);
  let around = 0;
  for (let turn = 0; turn < 400; turn += 1) {
    lossy.lose();
    await lossy.read((turn % PARTS) * PART_BYTES, PAGE_BYTES);
    if (lossy.waited.includes(PART_BYTES)) around += 1;
  }
  assert.ok(around > 0 && around < 200, `around=${around}`);
  await lossy.cache.close();
});

test("a part that is given up while it is brought into memory is a miss", async () => {
  const lossy = await Lossy.open();
  await lossy.read(0, PAGE_BYTES);
  for (let turn = 0; turn < 1000; turn += 1) await lossy.read(0, PAGE_BYTES);
  lossy.lose();
  const { cache } = lossy;
  const target = Buffer.alloc(PAGE_BYTES);
  const reads = Array.from({ length: PARTS }, async (_, part) => {
    const bytes = Buffer.alloc(PAGE_BYTES);
    const hit = await cache.read(object(1), part * PART_BYTES, bytes);
    if (hit) assert.ok(bytes.equals(content.subarray(part * PART_BYTES, part * PART_BYTES + PAGE_BYTES)));
    return hit;
  });
  for (let part = 0; part < 4; part += 1) cache.insert(object(2), part, content.subarray(0, PART_BYTES));
  const hits = (await Promise.all(reads)).filter(Boolean).length;
  assert.equal(hits, PARTS - 4);
  assert.equal(cache.stats().rotten, 0);
  await cache.settled();
  assert.ok(await cache.read(object(2), 0, target));
  await cache.close();
});
