/** The block cache: a model test against what was put in, and each promise of its comment. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32 } from "../../src/base/checksum.ts";
import { isKind, OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk, type MemoryDiskCall } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { BlockCache, type BlockCacheOptions } from "../../src/volume/block-cache.ts";
import { type ObjectIdentity, PART_BYTES } from "../../src/volume/cache-index.ts";
import type { VolumeUid } from "../../src/volume/identity.ts";
import { StillClock } from "./still-clock.ts";

const MIB = 1024 * 1024;

function uid(number: number): VolumeUid {
  return number.toString(16).padStart(32, "0") as VolumeUid;
}

function segment(sequence: number, volume = 1, kind: "segment" | "map" = "segment"): ObjectIdentity {
  return { uid: uid(volume), epoch: 3, sequence, kind };
}

const noise = new SeededRandom(99).bytes(2 * PART_BYTES);

/** The bytes of a part follow from its name, so no model has to be kept: noise, and the name in each 4 KiB. */
function content(object: ObjectIdentity, part: number, length = PART_BYTES): Buffer {
  const name = Buffer.from(`${object.uid} ${object.epoch} ${object.sequence} ${object.kind} ${part}`);
  const start = crc32(name) % PART_BYTES;
  const bytes = Buffer.from(noise.subarray(start, start + PART_BYTES));
  for (let at = 0; at < PART_BYTES; at += 4096) name.copy(bytes, at + 100);
  return bytes.subarray(0, length);
}

async function openCache(disk: MemoryDisk | undefined, options: Partial<BlockCacheOptions> = {}): Promise<BlockCache> {
  return await BlockCache.open({ disk, capacityBytes: 8 * MIB, clock: new StillClock(), log: nullLog, ...options });
}

async function put(cache: BlockCache, object: ObjectIdentity, part: number, length = PART_BYTES): Promise<void> {
  const bytes = content(object, part, length);
  if (cache.insert(object, part, bytes)) return;
  await cache.settled();
  assert.ok(cache.insert(object, part, bytes), "the cache takes a part when it is idle");
}

/** What a reader of the part finds, who tells right bytes from wrong ones and has wrong ones dropped. */
function look(
  cache: BlockCache,
  object: ObjectIdentity,
  part: number,
  within = 0,
  length = PART_BYTES,
): "right" | "wrong" | "miss" {
  const target = Buffer.alloc(length);
  const offset = part * PART_BYTES + within;
  if (!cache.readSync(object, offset, target)) return "miss";
  if (target.equals(content(object, part).subarray(within, within + length))) return "right";
  cache.drop(object, offset, length);
  assert.equal(cache.has(object, part), false, "what was found wrong is not there any more");
  return "wrong";
}

/** True for a hit; fails where the bytes are wrong. */
function verify(cache: BlockCache, object: ObjectIdentity, part: number, within = 0, length = PART_BYTES): boolean {
  const found = look(cache, object, part, within, length);
  assert.notEqual(found, "wrong", `wrong bytes of ${object.kind} ${object.sequence} part ${part}`);
  return found === "right";
}

async function damage(disk: MemoryDisk, position: number, length: number): Promise<void> {
  const file = await disk.open("cache-blocks");
  const bytes = Buffer.alloc(length);
  file.readSync(bytes, position);
  for (let at = 0; at < length; at += 1) bytes[at] ^= 0x5a;
  file.writeSync(bytes, position);
  await file.close();
}

test("what was put in is read back, before and after it is on the disk, over part borders and at odd offsets", async () => {
  const cache = await openCache(new MemoryDisk());
  const object = segment(1);
  const whole = Buffer.concat([content(object, 0), content(object, 1), content(object, 2, 5000)]);
  for (const part of [0, 1]) await put(cache, object, part);
  cache.insert(object, 2, content(object, 2, 5000));
  for (const settled of [false, true]) {
    if (settled) await cache.settled();
    for (const [offset, length] of [
      [0, 65_536],
      [4112, 4112],
      [65_530, 12],
      [1, 136_070],
      [131_072, 5000],
      [136_071, 1],
    ] as const) {
      for (const read of [cache.readSync.bind(cache), cache.read.bind(cache)]) {
        const target = Buffer.alloc(length);
        assert.equal(await read(object, offset, target), true);
        assert.ok(target.equals(whole.subarray(offset, offset + length)), `offset=${offset} length=${length}`);
      }
    }
    assert.equal(cache.readSync(object, 131_072, Buffer.alloc(5001)), false, "the object ends before");
    assert.equal(cache.readSync(object, 3 * PART_BYTES, Buffer.alloc(1)), false);
  }
  await cache.close();
});

test("objects that differ in one field of their identity are different objects", async () => {
  const cache = await openCache(new MemoryDisk());
  const base = segment(5);
  const others = [
    segment(6),
    segment(5, 2),
    segment(5, 1, "map"),
    { ...base, epoch: 4 },
    { ...base, sequence: 5 + 2 ** 32 },
    { ...base, epoch: 3 + 2 ** 31 },
  ];
  await put(cache, base, 0);
  for (const other of others) {
    assert.equal(verify(cache, other, 0), false);
    await put(cache, other, 0);
  }
  for (const object of [base, ...others]) assert.ok(verify(cache, object, 0));
  for (let number = 10; number < 5000; number += 1) {
    assert.equal(cache.has({ ...base, epoch: number }, 0), false);
    assert.equal(cache.has({ ...base, sequence: number }, 0), false);
    assert.equal(cache.has({ ...base, sequence: 5 + number * 2 ** 32 }, 0), false);
    assert.equal(cache.has(base, number), false);
  }
  await cache.close();
});

test("numbers beyond the index's columns are not cached and not mistaken", async () => {
  const cache = await openCache(new MemoryDisk());
  for (const object of [
    { ...segment(1), epoch: 2 ** 32 },
    { ...segment(1), sequence: 2 ** 48 },
  ]) {
    assert.equal(cache.insert(object, 0, content(object, 0)), false);
    assert.equal(cache.has(object, 0), false);
  }
  assert.equal(cache.insert(segment(1), 0x1_0000, content(segment(1), 0)), false);
  await cache.close();
});

test("random use yields right bytes alone, and wrong ones only after rot or a kill, until they are dropped", async () => {
  const totals = { hits: 0, wrong: 0, rotten: 0, outdated: 0, restarts: 0 };
  for (let seed = 1; seed <= 12; seed += 1) await randomUse(new SeededRandom(seed), seed % 3 > 0, totals);
  assert.ok(
    totals.hits > 1000 && totals.wrong > 50 && totals.rotten > 50 && totals.outdated > 5 && totals.restarts > 50,
    JSON.stringify(totals),
  );
});

async function randomUse(random: SeededRandom, harmed: boolean, totals: Record<string, number>): Promise<void> {
  let disk = new MemoryDisk();
  const clock = new StillClock();
  let cache = await openCache(disk, { clock, capacityBytes: 5 * MIB, writeBufferBytes: MIB });
  const some = (): { object: ObjectIdentity; part: number } => ({
    object: segment(random.below(12), 1 + random.below(2), random.below(8) === 0 ? "map" : "segment"),
    part: random.below(4),
  });
  for (let step = 0; step < 1500; step += 1) {
    clock.ms += 100;
    const { object, part } = some();
    const dice = random.below(100);
    if (dice < 35) {
      cache.insert(object, part, content(object, part));
    } else if (dice < 80) {
      const within = random.below(PART_BYTES - 1);
      const found = look(cache, object, part, within, 1 + random.below(PART_BYTES - within));
      if (found === "right") totals.hits += 1;
      if (found === "wrong") totals.wrong += 1;
      assert.ok(harmed || found !== "wrong", `wrong bytes of ${object.kind} ${object.sequence} part ${part}`);
    } else if (dice < 90) {
      const target = Buffer.alloc(4112);
      const reading = cache.read(object, part * PART_BYTES + 8000, target);
      for (let more = random.below(6); more > 0; more -= 1) {
        const other = some();
        cache.insert(other.object, other.part, content(other.object, other.part));
      }
      if (random.below(10) === 0) cache.drop(object, 0, 4 * PART_BYTES);
      const isRight = (): boolean => target.equals(content(object, part).subarray(8000, 12_112));
      if ((await reading) && !isRight()) {
        assert.ok(harmed, "wrong bytes of a read off the thread");
        cache.drop(object, part * PART_BYTES + 8000, 4112);
      }
    } else if (dice < 94) {
      if (!harmed) continue;
      await cache.settled();
      const file = await disk.open("cache-blocks");
      const slots = Math.floor(file.sizeBytes() / PART_BYTES);
      await file.close();
      if (slots > 0)
        await damage(disk, random.below(slots) * PART_BYTES + random.below(60_000), 1 + random.below(3000));
    } else if (dice < 95) {
      if (random.below(4) === 0) cache.forget(uid(2));
    } else if (random.below(5) > 0) {
      await cache.settled();
    } else {
      for (const key of ["rotten", "outdated"] as const) totals[key] += cache.stats()[key];
      totals.restarts += 1;
      disk = await restart(disk, cache, random, harmed);
      cache = await openCache(disk, { clock, capacityBytes: 5 * MIB, writeBufferBytes: MIB });
      assert.equal(cache.stats().state, "on");
    }
  }
  await cache.close();
}

async function restart(
  disk: MemoryDisk,
  cache: BlockCache,
  random: SeededRandom,
  harmed: boolean,
): Promise<MemoryDisk> {
  const dice = harmed ? random.below(4) : random.below(2) * 3;
  if (dice === 0) {
    await cache.close();
    return disk.reopen();
  }
  if (dice === 1) return disk.reopen();
  if (dice === 2) return disk.crash(random);
  await cache.close();
  const next = disk.reopen();
  if ((await next.list()).includes("cache-index")) {
    const file = await next.open("cache-index");
    for (let count = 0; count < 3; count += 1) file.writeSync(random.bytes(1), random.below(file.sizeBytes()));
    await file.close();
  }
  return next;
}

test("what its reader finds wrong is dropped and counted, and comes back right", async () => {
  const disk = new MemoryDisk();
  const cache = await openCache(disk);
  const object = segment(1);
  for (let round = 0; round < 20; round += 1) {
    await put(cache, object, 0);
    await cache.settled();
    const file = await disk.open("cache-blocks");
    const bytes = Buffer.alloc(file.sizeBytes());
    file.readSync(bytes, 0);
    const slot = bytes.indexOf(content(object, 0)) / PART_BYTES;
    await file.close();
    await damage(disk, slot * PART_BYTES + round * 1000, 1);
    assert.equal(look(cache, object, 0), "wrong", `round=${round}`);
    assert.equal(cache.stats().rotten, round + 1);
  }
  await cache.close();
});

test("a restart finds everything again, and a smaller cache what fits", async () => {
  let disk = new MemoryDisk();
  let cache = await openCache(disk);
  for (let part = 0; part < 100; part += 1) await put(cache, segment(1), part);
  await cache.close();
  await cache.close();
  disk = disk.reopen();
  cache = await openCache(disk);
  for (let part = 0; part < 100; part += 1) assert.ok(verify(cache, segment(1), part), `part=${part}`);
  await put(cache, segment(2), 0);
  await cache.close();
  disk = disk.reopen();
  cache = await openCache(disk, { capacityBytes: 4 * MIB });
  assert.equal(cache.stats().capacityParts, 64);
  for (let part = 0; part < 100; part += 1) verify(cache, segment(1), part);
  await put(cache, segment(3), 0);
  assert.ok(verify(cache, segment(3), 0));
  await cache.close();
});

test("the index is saved on the way, so that a killed process loses only what came last", async () => {
  const disk = new MemoryDisk();
  const clock = new StillClock();
  const cache = await openCache(disk, { clock, capacityBytes: 64 * MIB });
  for (let part = 0; part < 300; part += 1) {
    clock.ms += 100;
    await put(cache, segment(1), part);
    await cache.settled();
  }
  const again = await openCache(disk.reopen(), { clock, capacityBytes: 64 * MIB });
  assert.ok(again.stats().parts >= 256, `parts=${again.stats().parts}`);
  for (let part = 0; part < 256; part += 1) assert.ok(verify(again, segment(1), part), `part=${part}`);
});

test("slots used again after their index was saved are outdated and not rotten", async () => {
  const disk = new MemoryDisk();
  const cache = await openCache(disk, { capacityBytes: 4 * MIB });
  for (let part = 0; part < 64; part += 1) await put(cache, segment(1), part);
  await cache.close();
  const second = disk.reopen();
  const killed = await openCache(second, { capacityBytes: 4 * MIB });
  for (let part = 0; part < 64; part += 1) await put(killed, segment(2), part);
  await killed.settled();
  const last = await openCache(second.reopen(), { capacityBytes: 4 * MIB });
  for (let part = 0; part < 64; part += 1) assert.notEqual(look(last, segment(1), part), "right");
  assert.deepEqual([last.stats().outdated, last.stats().rotten], [64, 0]);
});

test("a damaged index header is ignored and the cache starts empty", async () => {
  const disk = new MemoryDisk();
  const cache = await openCache(disk);
  await put(cache, segment(1), 0);
  await cache.close();
  const next = disk.reopen();
  const file = await next.open("cache-index");
  for (const position of [0, 4, 12, 16, 28, 40]) {
    const saved = Buffer.alloc(1);
    file.readSync(saved, position);
    file.writeSync(Buffer.from([saved[0] ^ 1]), position);
    const again = await openCache(next);
    assert.deepEqual([again.stats().state, again.stats().parts], ["on", 0], `position=${position}`);
    file.writeSync(saved, position);
  }
  const intact = await openCache(next);
  assert.ok(verify(intact, segment(1), 0));
  file.writeSync(Buffer.from([77]), 100);
  assert.equal((await openCache(next)).stats().parts, 0, "a damaged group of rows is left out");
});

test("a scan of twice the cache leaves the parts in use", async () => {
  for (const step of [4096, 4112, PART_BYTES]) {
    const cache = await openCache(new MemoryDisk(), { capacityBytes: 16 * MIB });
    const hot = Array.from({ length: 100 }, (_, part) => part);
    const random = new SeededRandom(7);
    for (const part of hot) await put(cache, segment(1), part);
    for (let turn = 0; turn < 4000; turn += 1)
      verify(cache, segment(1), random.below(100), random.below(16) * 4096, 64);
    let used = 0;
    for (let part = 0; part < 512; part += 1) {
      await put(cache, segment(2), part);
      for (let within = 0; within + step <= PART_BYTES; within += step) {
        assert.ok(verify(cache, segment(2), part, within, Math.min(step, 512)));
      }
      // The hot set goes on being used, at a tenth of the scan's rate.
      if (part % 2 === 0) used += verify(cache, segment(1), random.below(100), random.below(16) * 4096, 64) ? 1 : 0;
    }
    const kept = hot.filter((part) => cache.has(segment(1), part)).length;
    assert.ok(kept >= 90, `step=${step}: ${kept} of 100 hot parts are left`);
    assert.ok(used >= 240, `step=${step}: ${used} of 256 hot reads hit`);
    await cache.close();
  }
});

test("half of the cache is for what came last, however much was in use before", async () => {
  const cache = await openCache(new MemoryDisk());
  const slots = (8 * MIB) / PART_BYTES;
  const [old, fresh] = [segment(1), segment(2)];
  for (let part = 0; part < slots; part += 1) await put(cache, old, part);
  await cache.settled();
  for (let use = 0; use < 5; use += 1) for (let part = 0; part < slots; part += 1) verify(cache, old, part, 0, 4096);
  for (let part = 0; part < slots * 0.75; part += 1) await put(cache, fresh, part);
  await cache.settled();
  const count = (object: ObjectIdentity): number =>
    Array.from({ length: slots }, (_, part) => Number(cache.has(object, part))).reduce((sum, one) => sum + one, 0);
  assert.ok(Math.abs(count(fresh) - slots / 2) <= 1, `${count(fresh)} new parts`);
  assert.equal(count(old) + count(fresh), slots);
  assert.ok(verify(cache, fresh, slots * 0.75 - 1));
});

test("a part that comes back soon after its eviction is kept longer", async () => {
  const cache = await openCache(new MemoryDisk(), { capacityBytes: 4 * MIB });
  await put(cache, segment(1), 0);
  for (let part = 0; part < 64; part += 1) await put(cache, segment(2), part);
  assert.equal(cache.has(segment(1), 0), false);
  await put(cache, segment(1), 0);
  for (let part = 64; part < 220; part += 1) await put(cache, segment(2), part);
  assert.equal(cache.has(segment(1), 0), true);
  await cache.close();
});

test("a part that is still being written is not given up for another", async () => {
  const cache = await openCache(new MemoryDisk(), { capacityBytes: 4 * MIB });
  for (let part = 0; part < 128; part += 1) {
    await put(cache, segment(1), part);
    for (let turn = 0; turn < 3; turn += 1) verify(cache, segment(1), part);
  }
  await cache.settled();
  for (let round = 0; round < 20; round += 1) {
    for (let part = 0; part < 8; part += 1)
      assert.ok(cache.insert(segment(2 + round), part, content(segment(2 + round), part)));
    for (let part = 0; part < 8; part += 1) assert.ok(verify(cache, segment(2 + round), part));
    await cache.settled();
  }
  await cache.close();
});

test("a flood of inserts is refused, not queued without bound", async () => {
  const cache = await openCache(new MemoryDisk(), { writeBufferBytes: 4 * PART_BYTES });
  const taken = Array.from({ length: 20 }, (_, part) => cache.insert(segment(1), part, content(segment(1), part)));
  assert.deepEqual(
    taken,
    taken.map((_, part) => part < 4),
  );
  assert.equal(cache.stats().refused, 16);
  await cache.settled();
  assert.ok(cache.insert(segment(1), 10, content(segment(1), 10)));
  await cache.close();
});

test("forgetting a volume frees its slots and leaves the others", async () => {
  const cache = await openCache(new MemoryDisk(), { capacityBytes: 4 * MIB });
  for (let part = 0; part < 32; part += 1) {
    await put(cache, segment(1, 1), part);
    await put(cache, segment(1, 2), part);
  }
  await cache.settled();
  cache.forget(uid(1));
  assert.equal(cache.stats().parts, 32);
  for (let part = 0; part < 32; part += 1) {
    assert.equal(verify(cache, segment(1, 1), part), false);
    await put(cache, segment(1, 3), part);
  }
  for (let part = 0; part < 32; part += 1) {
    assert.ok(verify(cache, segment(1, 2), part) && verify(cache, segment(1, 3), part));
    assert.equal(verify(cache, segment(1, 1), part), false);
  }
  assert.equal(cache.stats().evictions, 0);
  await cache.close();
});

test("a full disk stops the growth, and what is cached goes on being served", async () => {
  const disk = new MemoryDisk({ capacityBytes: 6 * MIB });
  disk.setCapacity(64 * MIB);
  const cache = await openCache(disk, { capacityBytes: 8 * MIB });
  disk.setCapacity(6 * MIB);
  let beyond = 0;
  disk.setFault((call) => {
    if (call.operation === "write" && call.position >= 6 * MIB) beyond += 1;
  });
  for (let part = 0; part < 300; part += 1) await put(cache, segment(1), part);
  await cache.settled();
  const stats = cache.stats();
  assert.equal(stats.state, "on");
  assert.ok(stats.parts > 80 && stats.parts <= 96, `parts=${stats.parts}`);
  assert.ok(beyond > 0 && beyond <= 16, `${beyond} writes beyond the room there is`);
  const hits = Array.from({ length: 300 }, (_, part) => verify(cache, segment(1), part)).filter(Boolean);
  assert.equal(hits.length, stats.parts);
  await cache.close();
});

test("a cache leaves a tenth of its file system free, and without room it is off", async () => {
  const roomy = await openCache(new MemoryDisk({ capacityBytes: 10 * MIB }), { capacityBytes: 100 * MIB });
  assert.equal(roomy.stats().capacityParts, 144);
  const none = await openCache(new MemoryDisk({ capacityBytes: MIB }));
  assert.equal(none.stats().state, "off");
  await none.close();
});

test("the index's memory has a limit and stays under 52 bytes a part", async () => {
  const cache = await openCache(new MemoryDisk(), { capacityBytes: 2048 * MIB, maxIndexBytes: MIB });
  const { capacityParts, indexBytes } = cache.stats();
  assert.equal(capacityParts, Math.floor(MIB / 52));
  assert.ok(indexBytes <= MIB && indexBytes > MIB / 2, `indexBytes=${indexBytes}`);
  await cache.close();
});

test("disk errors are misses, and too many of them turn the cache off for good", async () => {
  const disk = new MemoryDisk();
  const cache = await openCache(disk);
  for (let part = 0; part < 20; part += 1) await put(cache, segment(1), part);
  await cache.settled();
  disk.setFault(failOn("read"));
  assert.equal(verify(cache, segment(1), 0), false);
  assert.equal(await cache.read(segment(1), PART_BYTES, Buffer.alloc(10)), false);
  assert.deepEqual([cache.stats().state, cache.stats().diskErrors], ["on", 2]);
  disk.setFault(undefined);
  assert.ok(verify(cache, segment(1), 2));
  disk.setFault(failOn("write"));
  for (let part = 30; part < 36; part += 1) {
    await put(cache, segment(1), part);
    await cache.settled();
  }
  assert.equal(cache.stats().state, "off");
  disk.setFault(undefined);
  assert.equal(verify(cache, segment(1), 2), false);
  assert.equal(cache.insert(segment(1), 2, content(segment(1), 2)), false);
  await cache.close();
});

test("neighbours are written together, and one write that fails takes no more than its own parts along", async () => {
  const disk = new MemoryDisk();
  const cache = await openCache(disk, { capacityBytes: 32 * MIB });
  let writes = 0;
  disk.setFault(({ operation }) => {
    if (operation === "write") writes += 1;
  });
  for (let part = 0; part < 20; part += 1) cache.insert(segment(1), part, content(segment(1), part));
  await cache.settled();
  assert.ok(writes <= 3, `${writes} writes for 20 parts`);
  for (let part = 0; part < 20; part += 1) assert.ok(verify(cache, segment(1), part), `part ${part}`);
  disk.setFault(failOn("write"));
  for (let part = 30; part < 40; part += 1) cache.insert(segment(1), part, content(segment(1), part));
  await cache.settled();
  disk.setFault(undefined);
  assert.equal(cache.stats().state, "on");
  for (let part = 30; part < 40; part += 1) assert.equal(verify(cache, segment(1), part), false);
  for (let part = 0; part < 20; part += 1) assert.ok(verify(cache, segment(1), part), `part ${part}`);
});

test("a failed save of the index is no error and the next one works", async () => {
  const disk = new MemoryDisk();
  const cache = await openCache(disk);
  await put(cache, segment(1), 0);
  disk.setFault(failOn("rename"));
  await cache.close();
  const empty = await openCache(disk.reopen());
  assert.equal(empty.stats().parts, 0);
});

test("without a disk, or when it cannot be opened, every read is a miss and nothing fails", async () => {
  const broken = new MemoryDisk({ fault: failOn("open") });
  for (const disk of [undefined, broken]) {
    const cache = await openCache(disk);
    assert.equal(cache.stats().state, "off");
    assert.equal(cache.insert(segment(1), 0, content(segment(1), 0)), false);
    assert.equal(cache.readSync(segment(1), 0, Buffer.alloc(1)), false);
    assert.equal(await cache.read(segment(1), 0, Buffer.alloc(1)), false);
    cache.drop(segment(1), 0, 10);
    cache.forget(uid(1));
    await cache.close();
  }
});

test("what the disk must be waited for is no miss and not read on the thread, whatever the clock says", async () => {
  const disk = new MemoryDisk();
  const clock = new StillClock();
  const cache = await openCache(disk, { clock });
  for (const part of [0, 1]) await put(cache, segment(1), part);
  await cache.settled();
  let isInMemory = (position: number): boolean => position >= 0;
  disk.setInMemory((call) => isInMemory(call.position));
  disk.setFault((call) => {
    if (call.operation === "read") clock.ms += 5;
  });
  const whole = Buffer.concat([content(segment(1), 0), content(segment(1), 1)]);
  const target = Buffer.alloc(9000);
  for (let turn = 0; turn < 10; turn += 1) assert.ok(cache.readSync(segment(1), 60_000, target));
  assert.ok(target.equals(whole.subarray(60_000, 69_000)));
  isInMemory = () => false;
  const before = cache.stats();
  const readsBefore = clock.ms;
  for (let turn = 0; turn < 10; turn += 1) assert.equal(cache.readSync(segment(1), PART_BYTES, target), false);
  assert.equal(clock.ms, readsBefore, "the disk was not asked");
  assert.equal(cache.readsAreSlow(), false);
  assert.deepEqual(cache.stats(), before);
  target.fill(0);
  assert.ok(await cache.read(segment(1), 60_000, target));
  assert.ok(target.equals(whole.subarray(60_000, 69_000)));
  assert.equal(cache.stats().hits, before.hits + 1);
  assert.equal(cache.readSync(segment(2), 0, target), false);
  assert.equal(cache.stats().misses, before.misses + 1);
  await cache.close();
});

test("two timed reads in a row that were slow send the next 32 off the thread, then it is tried again", async () => {
  const disk = new MemoryDisk();
  const clock = new StillClock();
  const cache = await openCache(disk, { clock });
  await put(cache, segment(1), 0);
  await cache.settled();
  let readMs = 5;
  disk.setFault((call) => {
    if (call.operation === "read") clock.ms += readMs;
  });
  const readTaking = (ms: number): void => {
    readMs = ms;
    assert.ok(verify(cache, segment(1), 0));
    assert.equal(cache.readsAreSlow(), false);
  };
  for (let turn = 0; turn < 3; turn += 1) {
    readTaking(5);
    readTaking(0);
    // After a quick one, three are not timed.
    for (let untimed = 0; untimed < 3; untimed += 1) readTaking(5);
  }
  readTaking(5);
  for (let trial = 0; trial < 2; trial += 1) {
    assert.equal(cache.readsAreSlow(), false);
    assert.ok(verify(cache, segment(1), 0));
    for (let read = 0; read < 32; read += 1) {
      assert.equal(cache.readsAreSlow(), true);
      assert.ok(await cache.read(segment(1), 0, Buffer.alloc(10)));
    }
  }
  assert.equal(cache.readsAreSlow(), false);
  await cache.close();
});

test("a read off the thread whose slot is given away meanwhile is a miss, not rot", async () => {
  const disk = new MemoryDisk();
  const cache = await openCache(disk, { capacityBytes: 4 * MIB });
  for (let part = 0; part < 64; part += 1) await put(cache, segment(1), part);
  await cache.settled();
  const reads = Array.from({ length: 64 }, async (_, part) => {
    const target = Buffer.alloc(PART_BYTES);
    const hit = await cache.read(segment(1), part * PART_BYTES, target);
    if (hit) assert.ok(target.equals(content(segment(1), part)));
    return hit;
  });
  for (let part = 0; part < 8; part += 1) cache.insert(segment(2), part, content(segment(2), part));
  const hits = (await Promise.all(reads)).filter(Boolean).length;
  assert.equal(hits, 56);
  assert.equal(cache.stats().rotten, 0);
  await cache.close();
});

function failOn(operation: MemoryDiskCall["operation"]): (call: MemoryDiskCall) => void {
  return (call) => {
    if (call.operation === operation) throw new OperationError("unavailable", `injected ${operation} error`);
  };
}

test("the injected errors of these tests are what a disk would throw", () => {
  assert.throws(
    () => failOn("read")({ operation: "read", path: "", position: 0, length: 0 }),
    (error) => isKind(error, "unavailable"),
  );
});
