/**
 * Several volumes of one engine over one store in virtual time, each with a writer that never stops: for outages, errors
 * and slowness of the store. Counts the requests that reach the store, and how long a write or flush took at most.
 */
import assert from "node:assert/strict";
import type { Log, LogFields } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { Engine } from "../../src/volume/engine.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import type { Volume } from "../../src/volume/volume.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";

const MIB = 1024 * 1024;
const BLOCK = 4096;
const BLOCKS = 1024;

/** What a request meets when it reaches the store: nothing, or the error that it is answered with. */
export type Weather = (nowMs: number) => Error | undefined;

export interface LoadOptions {
  volumes: number;
  /** Blocks of one write, one write each `pauseMs`, a flush after each `flushEvery` of them. */
  blocks: number;
  pauseMs: number;
  flushEvery: number;
}

export class OutageBench {
  readonly clock = new VirtualClock();
  readonly lines: { message: string; fields: LogFields; atMs: number }[] = [];
  weather: Weather = () => undefined;
  /** What a request takes that arrives now. */
  latencyMs: () => number = () => 20;
  /** The most memory that uploads took when a request arrived. */
  mostUploadBytes = 0;
  /** Requests that reached the store. */
  requests = 0;
  writes = 0;
  flushes = 0;
  volumes: Volume[] = [];
  readonly #random = new SeededRandom(11);
  readonly #memory = new MemoryStore({ clock: this.clock });
  readonly #store: ObjectStore;
  #engine: Engine | undefined;
  #images: Uint8Array[] = [];

  constructor() {
    const weathered = new Proxy<ObjectStore>(this.#memory, {
      get: (target, name): unknown => {
        const value: unknown = Reflect.get(target, name);
        if (typeof value !== "function" || name === "close") return value;
        return async (...args: unknown[]): Promise<unknown> => {
          this.requests += 1;
          const error = this.weather(this.clock.monotonicMs());
          this.mostUploadBytes = Math.max(this.mostUploadBytes, this.#engine?.stats().uploadBytes ?? 0);
          await this.clock.sleep(this.latencyMs());
          if (error !== undefined) throw error;
          return (await Reflect.apply(value, target, args)) as unknown;
        };
      },
    });
    this.#store = new RetryingStore(weathered, { clock: this.clock, random: this.#random, log: this.#log() });
  }

  /** Makes and opens the volumes. */
  async open(count: number, journalSizeBytes: number): Promise<void> {
    const { clock } = this;
    const log = this.#log();
    const store = this.#store;
    const random = this.#random;
    const engine = await Engine.start({
      clock,
      random,
      log,
      nodeId: "node-1",
      cacheDisk: undefined,
      cacheSizeBytes: 0,
      mapBudgetBytes: 64 * MIB,
      uploadBudgetBytes: 64 * MIB,
      readBudgetBytes: 32 * MIB,
      journalSizeBytes,
      journalFileBytes: MIB,
      uploadIntervalMs: 5000,
    });
    this.#engine = engine;
    const catalog = new Catalog({ store, clock, random, log, fenceForDeletion: () => Promise.resolve() });
    for (let index = 0; index < count; index += 1) {
      const id = mustVolumeId(`vol-${index}`);
      const shape = { name: id, sizeBytes: 64 * MIB, blockSizeBytes: BLOCK, durability: "s3" as const, parameters: {} };
      await catalog.create({ id, ...shape });
      const journalDisk = await new MemoryDisk().directory("journal");
      const options = { store, journalDisk, mode: "take" as const, readOnly: false, publication: 0 };
      this.volumes.push(await engine.open(id, options));
      this.#images.push(new Uint8Array(BLOCKS));
    }
    this.requests = 0;
  }

  /** Every volume writes until `untilMs`; resolves when the last write and flush are answered. None may be refused. */
  async load(options: LoadOptions, untilMs: number): Promise<void> {
    await Promise.all(this.volumes.map((_, index) => this.#write(index, options, untilMs)));
  }

  /** Everything is in the store, and reads as it was written. */
  async check(): Promise<void> {
    await Promise.all(this.volumes.map((volume) => volume.drain()));
    for (const [index, volume] of this.volumes.entries()) {
      const { dirtyBytes, state } = volume.status();
      assert.deepEqual([dirtyBytes, state], [0, "open"]);
      const target = Buffer.alloc(BLOCKS * BLOCK);
      await volume.read(0, target);
      for (let block = 0; block < BLOCKS; block += 1) {
        const expected = Buffer.alloc(BLOCK, this.#images[index][block]);
        assert.ok(target.subarray(block * BLOCK, (block + 1) * BLOCK).equals(expected), `block ${block}`);
      }
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.volumes.map((volume) => volume.close()));
    await this.#engine?.close();
  }

  async #write(index: number, { blocks, pauseMs, flushEvery }: LoadOptions, untilMs: number): Promise<void> {
    const volume = this.volumes[index];
    const image = this.#images[index];
    // Flushes are not waited for by the writer: a file system goes on writing while one of its processes syncs.
    const flushes: Promise<void>[] = [];
    for (let count = 1; this.clock.monotonicMs() < untilMs; count += 1) {
      const block = this.#random.below(BLOCKS - blocks);
      const fill = count & 0xff;
      await volume.write(block * BLOCK, Buffer.alloc(blocks * BLOCK, fill), false);
      image.fill(fill, block, block + blocks);
      this.writes += 1;
      if (count % flushEvery === 0) {
        flushes.push(Promise.resolve(volume.flush()).then(() => void (this.flushes += 1)));
      }
      await this.clock.sleep(pauseMs);
    }
    await Promise.all(flushes);
  }

  #log(): Log {
    const note = (message: string, fields: LogFields = {}): void => {
      this.lines.push({ message, fields, atMs: this.clock.monotonicMs() });
    };
    const log: Log = { debug: () => {}, info: note, warn: note, error: note, child: () => log };
    return log;
  }
}
