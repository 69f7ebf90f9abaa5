/** What a volume promises besides what the model checks: the device contract, requests, space, pressure, damage. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { openSystemDisk } from "../../src/base/system-disk.ts";
import { systemRandom } from "../../src/base/system-random.ts";
import { ByteGranularDevice } from "../../src/block/byte-granular.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { Engine } from "../../src/volume/engine.ts";
import { parseKey } from "../../src/volume/keys.ts";
import { blockDeviceSuite } from "../suites/block-device-suite.ts";
import { EngineHarness, volumeId } from "../suites/engine-harness.ts";

const BLOCK = 4096;
const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const TIB = 1024 * GIB;

for (const durability of ["s3", "local"] as const) {
  blockDeviceSuite(`volume in memory, durability ${durability}`, async () => {
    const harness = new EngineHarness({ cacheDisk: new MemoryDisk(), cacheSizeBytes: 16 * MIB });
    await harness.create(64 * MIB, durability);
    return { device: await harness.open(), cleanup: () => harness.engine.close() };
  });
}

blockDeviceSuite("volume by the byte", async () => {
  const harness = new EngineHarness();
  await harness.create(64 * MIB);
  return { device: new ByteGranularDevice(await harness.open()), cleanup: () => harness.engine.close() };
});

blockDeviceSuite("volume on a directory store and a real disk", async () => {
  const root = await mkdtemp(join(tmpdir(), "s3block-volume-"));
  const store = new DirectoryStore({ root: join(root, "store") });
  const [clock, random, log] = [systemClock, systemRandom, nullLog];
  const catalog = new Catalog({ store, clock, random, log, fenceForDeletion: () => Promise.resolve() });
  await catalog.create({
    id: volumeId,
    name: "t",
    sizeBytes: 64 * MIB,
    blockSizeBytes: 4096,
    durability: "s3",
    parameters: {},
  });
  const engine = await Engine.start({
    clock,
    random,
    log,
    nodeId: "node-1",
    cacheDisk: await openSystemDisk(join(root, "cache")),
    cacheSizeBytes: 16 * MIB,
    mapBudgetBytes: 16 * MIB,
    uploadBudgetBytes: 64 * MIB,
    readBudgetBytes: 16 * MIB,
    journalSizeBytes: 64 * MIB,
    journalFileBytes: 4 * MIB,
    uploadIntervalMs: 50,
  });
  const journalDisk = await openSystemDisk(join(root, "journal"));
  const device = await engine.open(volumeId, { store, journalDisk, mode: "take", readOnly: false, publication: 0 });
  return {
    device,
    cleanup: async () => {
      await engine.close();
      await store.close();
      await rm(root, { recursive: true });
    },
  };
});

test("a flush of the s3 durability is one PUT, one with nothing to do none, and concurrent ones share", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB);
  const volume = await harness.open();
  const source = new SeededRandom(1).bytes(BLOCK * 4);
  const before = harness.counting.requests();
  await volume.write(0, source, false);
  await volume.flush();
  assert.equal(harness.counting.requests() - before, 1);
  await volume.flush();
  assert.equal(harness.counting.requests() - before, 1);
  harness.counting.latencyMs = 50;
  const flushes: unknown[] = [];
  for (let index = 0; index < 400; index += 1) {
    await volume.write(index * BLOCK, source.subarray(0, BLOCK), false);
    flushes.push(volume.flush());
  }
  await Promise.all(flushes);
  assert.ok(harness.counting.requests() - before <= 16, `${harness.counting.requests() - before} requests`);
  harness.counting.latencyMs = 0;
  await harness.close();
});

test("an idle volume makes no request", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB);
  const volume = await harness.open();
  await volume.write(0, Buffer.alloc(BLOCK, 1), false);
  await harness.clock.sleep(60_000);
  assert.equal(volume.status().dirtyBytes, 0, "what was written went to the store by itself");
  const before = harness.counting.requests();
  await harness.clock.sleep(24 * 3600 * 1000);
  assert.equal(harness.counting.requests(), before);
  await harness.close();
});

test("16 TiB empty: few requests to open, and trims of all of it are free", async () => {
  const harness = new EngineHarness();
  await harness.create(16 * TIB);
  const before = harness.counting.requests();
  const volume = await harness.open();
  assert.ok(harness.counting.requests() - before <= 12, `${harness.counting.requests() - before} requests`);
  for (let offset = 0; offset < 16 * TIB; offset += 4 * GIB) await volume.trim(offset, 4 * GIB, false);
  assert.equal(volume.status().neverWritten, true);
  assert.equal(volume.status().journalUsedBytes, 0);
  await harness.close();
});

test("a trim over terabytes costs by extents, gives the space back, and survives", async () => {
  const harness = new EngineHarness();
  await harness.create(16 * TIB);
  let volume = await harness.open();
  const source = new SeededRandom(2).bytes(BLOCK);
  for (let at = 0; at < 16 * TIB; at += 64 * GIB) await volume.write(at, source, false);
  await volume.flush();
  const putBytes = harness.counting.putBytes;
  for (let at = 0; at < 16 * TIB; at += 4 * GIB) await volume.trim(at, 4 * GIB, false);
  await volume.flush();
  assert.ok(harness.counting.putBytes - putBytes < MIB);
  volume = await harness.reopen();
  const target = Buffer.alloc(BLOCK, 1);
  for (let at = 0; at < 16 * TIB; at += 64 * GIB) {
    await volume.read(at, target.fill(1));
    assert.ok(target.every((byte) => byte === 0));
  }
  assert.equal(volume.status().neverWritten, false);
  await harness.close();
});

test("more map than memory: written all over the volume, everything is read back, also after a reopening", async () => {
  const harness = new EngineHarness({ mapBudgetBytes: 32 * 1024, uploadIntervalMs: 100 });
  await harness.create(64 * GIB);
  let volume = await harness.open();
  const random = new SeededRandom(3);
  const written = new Map<number, number>();
  for (let turn = 1; turn <= 600; turn += 1) {
    const offset = random.below((64 * GIB) / BLOCK) * BLOCK;
    written.set(offset, turn);
    await volume.write(offset, Buffer.alloc(BLOCK, turn % 251), false);
    if (turn % 20 === 0) await volume.flush();
  }
  const check = async (): Promise<void> => {
    const target = Buffer.alloc(BLOCK);
    for (const [offset, turn] of written) {
      await volume.read(offset, target);
      assert.ok(
        target.every((byte) => byte === turn % 251),
        `offset=${offset}`,
      );
    }
  };
  await check();
  assert.ok(harness.engine.stats().mapBytes < 300 * 1024);
  volume = await harness.reopen();
  await check();
  await harness.close();
});

test("hundreds of flushes leave a short recovery", async () => {
  const lines: Record<string, unknown>[] = [];
  const log = {
    ...nullLog,
    info: (_message: string, fields: Record<string, unknown> = {}) => void lines.push(fields),
    child: () => log,
  };
  const harness = new EngineHarness({ log });
  await harness.create(GIB);
  const volume = await harness.open();
  for (let turn = 0; turn < 700; turn += 1) {
    await volume.write((turn % 100) * BLOCK, Buffer.alloc(BLOCK, turn % 251), false);
    await volume.flush();
    await harness.clock.yield();
  }
  await harness.clock.settle();
  // As after the loss of the node: nothing is closed, and the disk is new.
  harness.disk = new MemoryDisk();
  const successor = await harness.open();
  const opened = lines.findLast((fields) => "replayedWrites" in fields)!;
  assert.ok((opened.replayedSegments as number) <= 256, `replayed ${String(opened.replayedSegments)}`);
  const target = Buffer.alloc(BLOCK);
  for (let index = 0; index < 100; index += 1) {
    await successor.read(index * BLOCK, target);
    assert.equal(target[0], (600 + index) % 251);
  }
  await harness.close();
});

test("a batch is read back at once, outlives the process when it is committed, and alone writes need no batch", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB, "local");
  const volume = await harness.open();
  const target = Buffer.alloc(BLOCK);
  await volume.write(0, Buffer.alloc(BLOCK, 1), false);
  volume.beginBatch();
  for (let index = 1; index < 100; index += 1) {
    assert.equal(volume.write(index * BLOCK, Buffer.alloc(BLOCK, index + 1), false), undefined);
    assert.equal(volume.read((index >> 1) * BLOCK, target), undefined);
    assert.equal(target[0], (index >> 1) + 1);
  }
  assert.equal(volume.writeZeroes(7 * BLOCK, 2 * BLOCK, false), undefined);
  volume.commitBatch();
  harness.disk = harness.disk.reopen();
  const successor = await harness.open("resume");
  for (let index = 0; index < 100; index += 1) {
    await successor.read(index * BLOCK, target);
    assert.equal(target[0], index === 7 || index === 8 ? 0 : index + 1, `block ${index}`);
  }
  await harness.close();
});

test("journal blocks that have left memory are waited for off the thread, also on a disk that never keeps any", async () => {
  const harness = new EngineHarness({ uploadIntervalMs: 3_600_000 });
  await harness.create(GIB, "local");
  const volume = await harness.open();
  const blocks = 200;
  const content = Buffer.concat(Array.from({ length: blocks }, (_, index) => Buffer.alloc(BLOCK, index + 1)));
  await volume.write(0, content, false);
  const reads: number[] = [];
  harness.disk.setInMemory(() => false);
  harness.disk.setDelay((call) => {
    if (call.operation === "read") reads.push(call.length);
    return undefined;
  });
  const target = Buffer.alloc(content.length);
  const waiting = volume.read(0, target);
  assert.ok(waiting instanceof Promise);
  await waiting;
  assert.ok(target.equals(content));
  assert.equal(
    reads.reduce((left, right) => left + right),
    blocks * 4112,
  );
  assert.ok(reads.every((length) => length <= 256 * 1024));
  harness.disk.setInMemory(() => true);
  assert.equal(volume.read(BLOCK, target.subarray(0, BLOCK)), undefined, "what is in memory is not waited for");
  assert.equal(target[0], 2);
  await harness.close();
});

test("an upload of what has left memory waits for the journal off the thread, a MiB at a time", async () => {
  const harness = new EngineHarness({ uploadIntervalMs: 3_600_000 });
  await harness.create(GIB, "s3");
  const volume = await harness.open();
  const blocks = 600;
  for (let block = 0; block < blocks; block += 1)
    await volume.write(block * 3 * BLOCK, Buffer.alloc(BLOCK, block), false);
  let warmUntil = 0;
  let waited = 0;
  harness.disk.setInMemory((call) => call.position + call.length <= warmUntil);
  harness.disk.setDelay((call) => {
    if (call.operation !== "read") return undefined;
    warmUntil = Math.max(warmUntil, call.position + call.length);
    waited += 1;
    return undefined;
  });
  await volume.flush();
  const mostBytes = blocks * 2 * 4112 + 2 * MIB;
  assert.ok(waited >= (blocks * 4112) / (256 * 1024) && waited <= mostBytes / (256 * 1024), `waited ${waited} times`);
  harness.disk.setInMemory(undefined);
  const target = Buffer.alloc(BLOCK);
  for (let block = 0; block < blocks; block += 1) {
    await volume.read(block * 3 * BLOCK, target);
    assert.equal(target[7], block % 256);
  }
  await harness.close();
});

test("a block that S3 takes, or that is written anew, while its journal is waited for is read from where it is then", async () => {
  for (const change of ["upload", "write", "zero"] as const) {
    const harness = new EngineHarness({ uploadIntervalMs: 3_600_000 });
    await harness.create(GIB, "s3");
    const volume = await harness.open();
    await volume.write(0, Buffer.alloc(2 * BLOCK, 7), false);
    harness.disk.setInMemory(() => false);
    const gate = Promise.withResolvers<void>();
    harness.disk.setDelay((call) => (call.operation === "read" ? gate.promise : undefined));
    const target = Buffer.alloc(2 * BLOCK);
    const waiting = volume.read(0, target);
    assert.ok(waiting instanceof Promise);
    harness.disk.setDelay(undefined);
    if (change === "upload") await volume.flush();
    if (change === "write") await volume.write(0, Buffer.alloc(BLOCK, 8), false);
    if (change === "zero") await volume.writeZeroes(0, BLOCK, false);
    gate.resolve();
    await waiting;
    assert.deepEqual([target[0], target[BLOCK]], [{ upload: 7, write: 8, zero: 0 }[change], 7], change);
    await harness.close();
  }
});

test("a batch that the journal's disk refuses fails as a whole, and what S3 gets of it is what can be read", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB, "s3");
  const volume = await harness.open();
  await volume.write(0, Buffer.alloc(BLOCK, 1), false);
  harness.disk.setFault((call) => {
    if (call.operation === "write") throw new OperationError("unavailable", "input/output error");
  });
  volume.beginBatch();
  assert.equal(volume.write(BLOCK, Buffer.alloc(BLOCK, 2), false), undefined);
  assert.throws(() => volume.commitBatch(), { kind: "unavailable" });
  await assert.rejects(async () => await volume.write(0, Buffer.alloc(BLOCK, 3), false), { kind: "unavailable" });
  await volume.flush();
  const target = Buffer.alloc(2 * BLOCK);
  await volume.read(0, target);
  assert.deepEqual([target[0], target[BLOCK]], [1, 2]);
  harness.disk.setFault(undefined);
  harness.disk = new MemoryDisk();
  const successor = await harness.open();
  await successor.read(0, target);
  assert.deepEqual([target[0], target[BLOCK]], [1, 2]);
  await harness.close();
});

test("half an hour without the store: writers slow down, nothing fails, everything drains", async () => {
  const harness = new EngineHarness({ journalSizeBytes: 64 * MIB, journalFileBytes: 4 * MIB });
  await harness.create(GIB, "local");
  const volume = await harness.open();
  harness.counting.failure = new OperationError("unavailable", "the store is away");
  const source = new SeededRandom(4).bytes(64 * 1024);
  const endMs = harness.clock.monotonicMs() + 30 * 60 * 1000;
  const before = harness.counting.requests();
  let writes = 0;
  const writer = (async () => {
    while (harness.clock.monotonicMs() < endMs) {
      await volume.write((writes % 1000) * source.length, source, false);
      writes += 1;
      await harness.clock.sleep(100);
    }
  })();
  await harness.clock.sleep(30 * 60 * 1000);
  const { journalUsedBytes, journalLimitBytes, behindMs } = volume.status();
  assert.ok(journalUsedBytes > journalLimitBytes * 0.7 && behindMs > 29 * 60 * 1000);
  assert.ok(harness.counting.requests() - before < 8 * 30 * 60, "retries back off");
  harness.counting.failure = undefined;
  await writer;
  assert.ok(writes > 700, `${writes} writes`);
  await volume.drain();
  assert.equal(volume.status().dirtyBytes, 0);
  await harness.close();
});

test("a store that refuses credentials for an hour loses nothing and fails nothing", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB);
  const volume = await harness.open();
  await volume.write(0, Buffer.alloc(BLOCK, 5), false);
  harness.counting.failure = new OperationError("invalid", "access denied");
  let isFlushed = false;
  const flush = Promise.resolve(volume.flush()).then(() => (isFlushed = true));
  await harness.clock.sleep(3600 * 1000);
  assert.equal(isFlushed, false);
  assert.equal(volume.status().state, "open");
  harness.counting.failure = undefined;
  await flush;
  await harness.close();
});

test("a full disk makes writers wait until the store has taken what is there, and is no error", async () => {
  const harness = new EngineHarness({ journalSizeBytes: 64 * MIB, journalFileBytes: 4 * MIB });
  harness.disk = new MemoryDisk({ capacityBytes: 5 * MIB });
  await harness.create(GIB);
  const volume = await harness.open();
  const random = new SeededRandom(9);
  const model = Buffer.alloc(32 * MIB);
  for (let turn = 0; turn < 200; turn += 1) {
    const offset = random.below(31 * 16) * 64 * 1024;
    const source = random.bytes(256 * 1024);
    await volume.write(offset, source, false);
    source.copy(model, offset);
  }
  const target = Buffer.alloc(model.length);
  await volume.read(0, target);
  assert.ok(target.equals(model));
  await harness.close();
});

test("a flush whose sync the local disk fails is answered once S3 holds what it covers", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB, "local");
  const volume = await harness.open();
  await volume.write(0, Buffer.alloc(BLOCK, 1), false);
  harness.disk.setFault((call) => {
    if (call.operation === "sync") throw new OperationError("unavailable", "input/output error");
  });
  await volume.flush();
  assert.equal(volume.status().dirtyBytes, 0);
  harness.disk = new MemoryDisk();
  const successor = await harness.open();
  const target = Buffer.alloc(BLOCK);
  await successor.read(0, target);
  assert.equal(target[0], 1);
  await harness.close();
});

test("a disk with no room for the first journal file refuses the opening and says why", async () => {
  const harness = new EngineHarness();
  harness.disk = new MemoryDisk({ capacityBytes: MIB });
  await harness.create(GIB);
  await assert.rejects(harness.open(), { kind: "exhausted" });
});

test("rot in the store fails that range alone, and is reported", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB);
  let volume = await harness.open();
  await volume.write(0, new SeededRandom(5).bytes(BLOCK * 8), false);
  await volume.flush();
  await volume.write(MIB, Buffer.alloc(BLOCK, 7), false);
  volume = await harness.reopen();
  const [key] = (await harness.keys("v1/log/")).filter((name) => {
    const parsed = parseKey(name);
    return parsed?.kind === "segment" && parsed.sequence === 1 && parsed.epoch === 1;
  });
  const body = (await harness.counting.inner.get(key))!;
  body[body.length - 4112 * 3 + 100] ^= 1;
  await harness.counting.inner.delete([key]);
  await harness.counting.inner.putIfAbsent(key, [body]);
  const target = Buffer.alloc(BLOCK);
  await assert.rejects(async () => await volume.read(BLOCK * 5, target), { kind: "corrupt" });
  await volume.read(BLOCK * 4, target);
  await volume.read(MIB, target);
  assert.equal(target[0], 7);
  assert.equal(volume.status().state, "open");
  await harness.close();
});

test("a write of 32 MiB and one over the end of a generation arrive whole", async () => {
  const harness = new EngineHarness({ journalFileBytes: 64 * MIB });
  await harness.create(GIB);
  let volume = await harness.open();
  const random = new SeededRandom(6);
  const source = random.bytes(32 * MIB);
  await volume.write(BLOCK, source, false);
  await volume.write(40 * MIB, source.subarray(0, 20 * MIB), true);
  volume = await harness.reopen();
  const target = Buffer.alloc(source.length);
  await volume.read(BLOCK, target);
  assert.ok(target.equals(source));
  await volume.read(40 * MIB, target.subarray(0, 20 * MIB));
  assert.ok(target.subarray(0, 20 * MIB).equals(source.subarray(0, 20 * MIB)));
  await harness.close();
});

test("a volume that is open cannot be opened twice in one process, and an unknown one not at all", async () => {
  const harness = new EngineHarness();
  await assert.rejects(harness.open(), { kind: "not-found" });
  await harness.create(GIB);
  await harness.open();
  const journalDisk = await harness.disk.directory("journal");
  const options = { store: harness.store, journalDisk, mode: "take", readOnly: false, publication: 0 } as const;
  await assert.rejects(harness.engine.open(volumeId, options), { kind: "busy" });
  await harness.close();
});

test("resume refuses to claim what another node has taken, and leaves it alone", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB);
  const first = await harness.open();
  await first.write(0, Buffer.alloc(BLOCK, 1), false);
  const own = harness.disk;
  harness.disk = new MemoryDisk();
  const second = await harness.open();
  harness.disk = own.reopen();
  await assert.rejects(harness.open("resume"), { kind: "fenced" });
  await second.write(0, Buffer.alloc(BLOCK, 2), true);
  await second.close();
});

test("who has lost the right to own a volume while it opens it fences nobody", async () => {
  const harness = new EngineHarness();
  await harness.create(GIB);
  const owner = await harness.open();
  const intruder = new EngineHarness();
  const journalDisk = await intruder.disk.directory("journal");
  await intruder.start();
  const options = { store: harness.store, journalDisk, mode: "take", readOnly: false, publication: 7 } as const;
  const confirm = (): Promise<void> => Promise.reject(new OperationError("in-use", "published to another node"));
  await assert.rejects(intruder.engine.open(volumeId, { ...options, confirm }), { kind: "in-use" });
  await owner.write(0, Buffer.alloc(BLOCK, 3), true);
  await harness.close();
});

test("a read that fails in the journal waits for what it fetches from S3 before it fails", async () => {
  const harness = new EngineHarness();
  await harness.create(64 * MIB);
  const volume = await harness.open();
  await volume.write(0, Buffer.alloc(BLOCK, 1), true);
  await harness.clock.sleep(10_000);
  await volume.write(BLOCK, Buffer.alloc(BLOCK, 2), false);
  harness.disk.setFault(({ operation }) => {
    if (operation === "read") throw new OperationError("unavailable", "the disk fails");
  });
  harness.counting.latencyMs = 100;
  const startedMs = harness.clock.monotonicMs();
  await assert.rejects(async () => volume.read(0, Buffer.alloc(2 * BLOCK)), /the disk fails|cannot be read/);
  assert.ok(harness.clock.monotonicMs() >= startedMs + 100, "the block in S3 was waited for");
});
