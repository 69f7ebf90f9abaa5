/**
 * The engine against a plain array: thousands of random writes, trims, zeroes, flushes, reads, reopenings and crashes
 * by seed. Every block written carries its version, so that an image can be compared with the moments of history:
 * after a crash the volume must equal one moment that holds every acknowledged flush (every acknowledged write, where
 * only the process died).
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { Engine } from "../../src/volume/engine.ts";
import { type Durability, mustVolumeId } from "../../src/volume/identity.ts";
import type { Volume } from "../../src/volume/volume.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";

const BLOCK = 4096;
const BLOCKS = 512;
/** Where the blocks of the model begin: they lie on both sides of the border between two shards of the map. */
const FIRST_BLOCK = 32_768 - 200;
const volumeId = mustVolumeId("vol-model");

/**
 * A store with latency, as one process reaches it: each request takes effect some time after it was sent, and is
 * answered some time after that. What a dead process had sent may still take effect; it hears of nothing any more.
 */
function slowStore(store: ObjectStore, clock: VirtualClock, random: SeededRandom, isDead: () => boolean): ObjectStore {
  return new Proxy(store, {
    get(target, name): unknown {
      const value: unknown = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      return async (...args: unknown[]): Promise<unknown> => {
        if (isDead()) return await new Promise(() => undefined);
        await clock.sleep(random.below(40));
        if (isDead() && random.below(2) === 0) return await new Promise(() => undefined);
        const answer = (await Reflect.apply(value, target, args)) as unknown;
        await clock.sleep(random.below(20));
        return isDead() ? await new Promise(() => undefined) : answer;
      };
    },
  });
}

/** What one operation did: the blocks, and the version that they read as afterwards (0 = zeroes). */
interface Step {
  lba: number;
  blocks: number;
  version: number;
}

class Model {
  readonly #random: SeededRandom;
  readonly #durability: Durability;
  readonly #clock = new VirtualClock();
  readonly #store: ObjectStore;
  /** The disks of two nodes, and which of them has the volume. */
  readonly #disks = [new MemoryDisk(), new MemoryDisk()];
  #node = 0;
  #process = { dead: false };
  #engine!: Engine;
  volume!: Volume;
  /** Owners that were taken over while they ran: they must never get a flush through again. */
  #zombies: { volume: Volume; process: { dead: boolean } }[] = [];
  /** Operations that were issued and not awaited yet. */
  #underWay: Promise<void>[] = [];
  /** The image at a moment that S3 holds, and every step since. */
  #base = new Float64Array(BLOCKS);
  #steps: Step[] = [];
  /** How many of the steps were acknowledged, and how many of them flushed. */
  #acknowledged = 0;
  #flushed = 0;
  #version = 0;
  crashes = 0;

  constructor(seed: number, durability: Durability, store: ObjectStore = new MemoryStore()) {
    this.#store = store;
    this.#random = new SeededRandom(seed);
    this.#durability = durability;
  }

  async create(): Promise<void> {
    const options = { store: this.#store, clock: this.#clock, random: this.#random, log: nullLog };
    const catalog = new Catalog({ ...options, fenceForDeletion: () => Promise.resolve() });
    await catalog.create({
      id: volumeId,
      name: "model",
      sizeBytes: 1024 ** 3,
      blockSizeBytes: 4096,
      durability: this.#durability,
      parameters: {},
    });
    await this.open("take");
  }

  async open(mode: "take" | "resume"): Promise<void> {
    const process = { dead: false };
    this.#process = process;
    this.#engine = await Engine.start({
      clock: this.#clock,
      random: this.#random,
      log: nullLog,
      nodeId: `node-${this.#node}`,
      cacheDisk: await this.#disks[this.#node].directory("cache"),
      cacheSizeBytes: 8 * 1024 * 1024,
      mapBudgetBytes: 64 * 1024,
      uploadBudgetBytes: 64 * 1024 * 1024,
      readBudgetBytes: 8 * 1024 * 1024,
      journalSizeBytes: 4 * 1024 * 1024,
      journalFileBytes: 512 * 1024,
      uploadIntervalMs: 1000,
    });
    this.volume = await this.#engine.open(volumeId, {
      store: slowStore(this.#store, this.#clock, this.#random, () => process.dead),
      journalDisk: await this.#disks[this.#node].directory("journal"),
      mode,
      readOnly: false,
      publication: 0,
    });
  }

  /** One random operation; one in three is not waited for before the next. */
  async step(): Promise<void> {
    const kind = this.#random.below(100);
    if (this.#underWay.length > 8) await this.#settle();
    if (kind < 55) await this.#write(false);
    else if (kind < 65) await this.#zero();
    else if (kind < 70) await this.#flush();
    else if (kind < 75) void Promise.resolve(this.volume.flush()).catch(() => undefined);
    else if (kind < 78) await this.#write(true);
    else if (kind < 85) await this.#clock.sleep(this.#random.below(8) === 0 ? 3000 : this.#random.below(70));
    else await this.#read();
  }

  /** The other node takes the volume over while this one goes on as if nothing had happened. */
  async takeOver(): Promise<void> {
    const kept = this.#flushed;
    this.#zombies.push({ volume: this.volume, process: this.#process });
    this.#underWay = [];
    this.#node = 1 - this.#node;
    await this.open("take");
    await this.verify(this.#durability === "s3" ? kept : 0);
    this.#keep(this.#acknowledged);
  }

  /** A former owner tries to write: no flush of it may be acknowledged, and nothing of it may be seen. */
  async wakeZombie(): Promise<void> {
    const zombie = this.#zombies.pop();
    if (zombie === undefined) return;
    const source = Buffer.alloc(BLOCK, 0xdd);
    await assert.rejects(
      async () => {
        await zombie.volume.write(offsetOf(0), source, false);
        await zombie.volume.drain();
      },
      (error) => error instanceof OperationError && error.kind === "fenced",
    );
    zombie.process.dead = true;
    await this.verify(this.#steps.length);
  }

  /** Waits for everything issued: all of it is acknowledged then. */
  async #settle(): Promise<void> {
    await Promise.all(this.#underWay);
    this.#underWay = [];
    this.#acknowledged = this.#steps.length;
  }

  async reopen(): Promise<void> {
    await this.#settle();
    await this.volume.close();
    await this.#engine.close();
    this.#keep(this.#acknowledged);
    await this.open("take");
    await this.verify(0);
  }

  async handOver(): Promise<void> {
    await this.#settle();
    await this.volume.leave();
    await this.#engine.close();
    await this.open("resume");
    await this.verify(this.#acknowledged);
  }

  /** Kills the process in the middle of things. */
  async crash(kind: "process" | "power" | "node"): Promise<void> {
    this.crashes += 1;
    const torn = this.#random.below(2) === 0 ? this.#writeUnanswered() : undefined;
    if (this.#random.below(2) === 0) void Promise.resolve(this.volume.flush()).catch(() => undefined);
    await this.#clock.sleep(this.#random.below(3) === 0 ? 0 : this.#random.below(90));
    this.#process.dead = true;
    const disks = this.#disks;
    if (kind === "process") disks[this.#node] = disks[this.#node].reopen();
    else if (kind === "power") disks[this.#node] = disks[this.#node].crash(this.#random);
    else disks[this.#node] = new MemoryDisk();
    // Zombies of this node die with its disk.
    this.#zombies = [];
    await this.#clock.settle();
    for (const operation of [torn, ...this.#underWay]) void operation?.catch(() => undefined);
    this.#underWay = [];
    await this.open(kind === "process" ? "resume" : "take");
    const mustHold =
      kind === "process" ? this.#acknowledged : kind === "node" && this.#durability === "local" ? 0 : this.#flushed;
    await this.verify(mustHold);
    if (kind === "node") this.#keep(this.#acknowledged);
  }

  /** The image must equal a moment of history with at least `mustHold` steps; history goes on from there. */
  async verify(mustHold: number): Promise<void> {
    const image = await this.#image();
    const moment = Float64Array.from(this.#base);
    for (let count = 0; count <= this.#steps.length; count += 1) {
      if (count > 0) applyStep(moment, this.#steps[count - 1]);
      if (count < mustHold || !sameImage(moment, image)) continue;
      // A later equal moment may exist, but none is told apart by its content.
      this.#steps.length = count;
      this.#acknowledged = count;
      this.#flushed = Math.min(count, this.#flushed);
      return;
    }
    const differing = image.findIndex((version, lba) => version !== moment[lba]);
    assert.fail(
      `no moment of history with ${mustHold} of ${this.#steps.length} steps, first difference at block ${differing}`,
    );
  }

  /** S3 holds the first `count` steps whatever happens to the node: none of them can be undone any more. */
  #keep(count: number): void {
    for (const step of this.#steps.splice(0, count)) applyStep(this.#base, step);
    this.#acknowledged -= count;
    this.#flushed = Math.max(0, this.#flushed - count);
  }

  async #write(fua: boolean): Promise<void> {
    const { step, source } = this.#nextWrite();
    this.#steps.push(step);
    const written = Promise.resolve(this.volume.write(offsetOf(step.lba), source, fua));
    written.catch(() => undefined);
    this.#underWay.push(written);
    if (!fua && this.#random.below(3) === 0) return;
    await this.#settle();
    if (fua) this.#flushed = this.#steps.length;
  }

  #writeUnanswered(): Promise<void> {
    const { step, source } = this.#nextWrite();
    this.#steps.push(step);
    return Promise.resolve(this.volume.write(offsetOf(step.lba), source, false));
  }

  #nextWrite(): { step: Step; source: Buffer } {
    const lba = this.#random.below(BLOCKS);
    const blocks = 1 + this.#random.below(Math.min(this.#random.below(8) === 0 ? 64 : 4, BLOCKS - lba));
    const version = (this.#version += 1);
    const source = Buffer.alloc(blocks * BLOCK, version & 0xff);
    for (let block = 0; block < blocks; block += 1) source.writeDoubleLE(version, block * BLOCK);
    return { step: { lba, blocks, version }, source };
  }

  async #zero(): Promise<void> {
    const lba = this.#random.below(BLOCKS);
    const blocks = 1 + this.#random.below(BLOCKS - lba);
    await this.#settle();
    this.#steps.push({ lba, blocks, version: 0 });
    await (this.#random.below(2) === 0
      ? this.volume.trim(offsetOf(lba), blocks * BLOCK, false)
      : this.volume.writeZeroes(offsetOf(lba), blocks * BLOCK, false));
    this.#acknowledged = this.#steps.length;
  }

  async #flush(): Promise<void> {
    await this.#settle();
    await this.volume.flush();
    this.#flushed = this.#steps.length;
    if (this.#durability === "s3") this.#keep(this.#flushed);
  }

  async #read(): Promise<void> {
    await this.#settle();
    const lba = this.#random.below(BLOCKS);
    const blocks = 1 + this.#random.below(BLOCKS - lba);
    const expected = Float64Array.from(this.#base);
    for (const step of this.#steps) applyStep(expected, step);
    const target = Buffer.alloc(blocks * BLOCK, 0xee);
    await this.volume.read(offsetOf(lba), target);
    assert.deepEqual(versionsOf(target), [...expected.subarray(lba, lba + blocks)]);
  }

  async #image(): Promise<Float64Array> {
    const target = Buffer.alloc(BLOCKS * BLOCK, 0xee);
    await this.volume.read(offsetOf(0), target);
    return Float64Array.from(versionsOf(target));
  }

  async end(): Promise<void> {
    await this.#settle();
    await this.volume.close();
    await this.#engine.close();
  }
}

function offsetOf(lba: number): number {
  return (FIRST_BLOCK + lba) * BLOCK;
}

function versionsOf(bytes: Buffer): number[] {
  return Array.from({ length: bytes.length / BLOCK }, (_, block) => {
    const version = bytes.readDoubleLE(block * BLOCK);
    const fill = bytes[block * BLOCK + 8];
    const rest = bytes.subarray(block * BLOCK + 8, (block + 1) * BLOCK);
    assert.ok(
      rest.equals(Buffer.alloc(BLOCK - 8, fill)) && fill === (version & 0xff),
      `block ${block} is one version whole`,
    );
    return version;
  });
}

function applyStep(image: Float64Array, step: Step): void {
  image.fill(step.version, step.lba, step.lba + step.blocks);
}

function sameImage(left: Float64Array, right: Float64Array): boolean {
  return left.every((version, lba) => version === right[lba]);
}

/** Forty rounds of operations, each ended by a reopening, a hand-over, a crash or a take-over. */
async function live(model: Model, seed: number): Promise<void> {
  const random = new SeededRandom(seed);
  await model.create();
  for (let turn = 0; turn < 40; turn += 1) {
    const steps = random.below(60);
    for (let step = 0; step < steps; step += 1) await model.step();
    const end = random.below(7);
    if (end === 0) await model.reopen();
    else if (end === 1) await model.handOver();
    else if (end < 5) await model.crash((["process", "power", "node"] as const)[end - 2]);
    else await model.takeOver();
    if (random.below(2) === 0) await model.wakeZombie();
  }
  await model.end();
  assert.ok(model.crashes > 8);
}

for (const durability of ["s3", "local"] as const) {
  for (const seed of [1, 2, 3, 4]) {
    test(`random operations and crashes equal history, durability ${durability}, seed ${seed}`, async () => {
      await live(new Model(seed * 1000 + (durability === "s3" ? 0 : 1), durability), seed);
    });
  }

  test(`the same on a directory store, durability ${durability}`, async () => {
    const root = await mkdtemp(join(tmpdir(), "s3block-model-"));
    const store = new DirectoryStore({ root });
    try {
      await live(new Model(9000, durability, store), 9);
    } finally {
      await store.close();
      await rm(root, { recursive: true });
    }
  });
}

test("a volume that another process took over fails all its I/O", async () => {
  const model = new Model(77, "s3");
  await model.create();
  for (let step = 0; step < 30; step += 1) await model.step();
  const old = model.volume;
  await model.takeOver();
  const source = Buffer.alloc(BLOCK, 1);
  await assert.rejects(
    async () => {
      await old.write(0, source, false);
      await old.flush();
    },
    (error) => error instanceof OperationError && error.kind === "fenced",
  );
  assert.throws(() => old.read(0, source), { kind: "fenced" });
  assert.throws(() => old.write(0, source, false), { kind: "fenced" });
  await old.close();
  await model.end();
});
