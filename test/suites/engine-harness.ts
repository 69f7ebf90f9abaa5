/**
 * One node with the engine on it, in memory and in virtual time, for tests of the volume: a store that counts requests
 * and can be switched off, a disk, and a volume that was just created.
 */
import { type Log, nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { OperationError } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { Engine, type EngineOptions } from "../../src/volume/engine.ts";
import { type Durability, mustVolumeId } from "../../src/volume/identity.ts";
import type { Volume } from "../../src/volume/volume.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";

export const volumeId = mustVolumeId("vol-test");
const MIB = 1024 * 1024;

type Method = "putIfAbsent" | "get" | "getRange" | "list" | "delete";

/** Counts requests by kind and bytes put; fails them all with `failure` while that is set. */
export class CountingStore {
  readonly inner = new MemoryStore();
  readonly counts: Record<Method, number> = { putIfAbsent: 0, get: 0, getRange: 0, list: 0, delete: 0 };
  putBytes = 0;
  /** Virtual milliseconds every request takes. */
  latencyMs = 0;
  failure: OperationError | undefined;
  readonly store: ObjectStore;

  constructor(clock: VirtualClock) {
    this.store = new Proxy<ObjectStore>(this.inner, {
      get: (target, name): unknown => {
        const value: unknown = Reflect.get(target, name);
        if (typeof value !== "function" || !(name in this.counts)) return value;
        return async (...args: unknown[]): Promise<unknown> => {
          this.counts[name as Method] += 1;
          if (this.latencyMs > 0) await clock.sleep(this.latencyMs);
          if (this.failure !== undefined) throw this.failure;
          if (name === "putIfAbsent") {
            for (const part of args[1] as Uint8Array[]) this.putBytes += part.length;
          }
          return (await Reflect.apply(value, target, args)) as unknown;
        };
      },
    });
  }

  requests(): number {
    return Object.values(this.counts).reduce((sum, count) => sum + count, 0);
  }
}

export class EngineHarness {
  readonly clock = new VirtualClock();
  readonly random = new SeededRandom(42);
  readonly counting = new CountingStore(this.clock);
  readonly store: ObjectStore;
  disk = new MemoryDisk();
  engine!: Engine;
  volume!: Volume;
  readonly #options: Partial<EngineOptions>;
  readonly #log: Log;

  constructor(options: Partial<EngineOptions> = {}) {
    this.#options = options;
    this.#log = options.log ?? nullLog;
    const { clock, random } = this;
    this.store = new RetryingStore(this.counting.store, { clock, random, log: nullLog });
  }

  async create(sizeBytes: number, durability: Durability = "s3"): Promise<void> {
    const { store, clock, random } = this;
    const catalog = new Catalog({ store, clock, random, log: nullLog, fenceForDeletion: () => Promise.resolve() });
    await catalog.create({ id: volumeId, name: "test", sizeBytes, blockSizeBytes: 4096, durability, parameters: {} });
  }

  /** A new engine, as a new process has it. */
  async start(): Promise<void> {
    const { clock, random } = this;
    this.engine = await Engine.start({
      clock,
      random,
      log: this.#log,
      nodeId: "node-1",
      cacheDisk: undefined,
      cacheSizeBytes: 0,
      mapBudgetBytes: 64 * MIB,
      uploadBudgetBytes: 64 * MIB,
      readBudgetBytes: 32 * MIB,
      journalSizeBytes: 256 * MIB,
      journalFileBytes: 16 * MIB,
      uploadIntervalMs: 5000,
      ...this.#options,
    });
  }

  async open(mode: "take" | "resume" = "take"): Promise<Volume> {
    await this.start();
    const journalDisk = await this.disk.directory("journal");
    this.volume = await this.engine.open(volumeId, {
      store: this.store,
      journalDisk,
      mode,
      readOnly: false,
      publication: 0,
    });
    return this.volume;
  }

  /** Closes everything and opens it again, as the next attachment would. */
  async reopen(): Promise<Volume> {
    await this.close();
    return await this.open();
  }

  async close(): Promise<void> {
    await this.volume.close();
    await this.engine.close();
  }

  /** Every key below `prefix`. */
  async keys(prefix: string): Promise<string[]> {
    const keys: string[] = [];
    let after: string | undefined;
    do {
      const page = await this.counting.inner.list(prefix, after === undefined ? {} : { after });
      keys.push(...page.objects.map((object) => object.key));
      after = page.next;
    } while (after !== undefined);
    return keys;
  }
}
