/**
 * Nodes that open one volume by the real engine on disks and a store in memory, and what may happen between two
 * openings: the process dies, objects are lost or damaged, files are lost or damaged. A dead process reaches nothing
 * any more.
 */
import assert from "node:assert/strict";
import { type Log, nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { Engine, type EngineOpenOptions } from "../../src/volume/engine.ts";
import { fenceForDeletion, type FencingEnvironment } from "../../src/volume/fencing.ts";
import type { Epoch, SegmentSeq, VolumeId } from "../../src/volume/identity.ts";
import { checkpointPrefix, segmentKey, type VolumeRef } from "../../src/volume/keys.ts";
import { getMeta } from "../../src/volume/names.ts";
import type { Volume } from "../../src/volume/volume.ts";
import type { HostedVolume } from "../../src/attachment/volume-worker.ts";
import { type HostedVolumesParts, openHostedVolume } from "../../src/cli/hosted-volumes.ts";
import { VolumeMetrics } from "../../src/observability/metrics.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";

export const BLOCK = 4096;
const MIB = 1024 * 1024;
export const volumeId = "vol-1" as VolumeId;

export interface Process {
  dead: boolean;
  /** Without: what is put into the log of an epoch, but START and FENCE, is on its way for ever. */
  uploads: boolean;
  volume: Volume;
}

export class RecoveryNode {
  disk = new MemoryDisk();
  readonly world: RecoveryWorld;
  readonly name: string;
  #process: Process | undefined;

  constructor(world: RecoveryWorld, name: string) {
    this.world = world;
    this.name = name;
  }

  get volume(): Volume {
    assert.ok(this.#process !== undefined);
    return this.#process.volume;
  }

  async open(mode: "take" | "resume" = "take", changes: Partial<EngineOpenOptions> = {}): Promise<Volume> {
    const process: Omit<Process, "volume"> = { dead: false, uploads: true };
    const engine = await this.#engine();
    const store = this.world.storeOf(process);
    const journalDisk = await this.journal();
    const options = { store, journalDisk, mode, readOnly: false, publication: 0, ...changes };
    const volume = await engine.open(volumeId, options);
    this.#process = Object.assign(process, { volume });
    return volume;
  }

  /** As a server opens it that was asked to attach what publication `publication` gave it. */
  async openHosted(mode: "take" | "resume", publication: number): Promise<HostedVolume> {
    const process = { dead: false, uploads: true };
    const { world } = this;
    const parts: HostedVolumesParts = {
      engine: await this.#engine(),
      stores: { of: () => world.storeOf(process), catalog: () => world.catalog },
      journals: await this.disk.directory("hosted"),
      metrics: { addVolume: (_id, gauges) => new VolumeMetrics(gauges), removeVolume: () => undefined },
      clock: world.clock,
      nodeId: this.name,
    };
    const location = { url: "", endpoint: "", region: "" };
    const rights = { mode, clientWaits: false, readOnly: false, durability: "", publication } as const;
    return await openHostedVolume(parts, { volumeId, location, secrets: {}, ...rights });
  }

  async #engine(): Promise<Engine> {
    const { clock, random, log } = this.world;
    return await Engine.start({
      clock,
      random,
      log,
      nodeId: this.name,
      cacheDisk: undefined,
      cacheSizeBytes: 0,
      mapBudgetBytes: 64 * MIB,
      uploadBudgetBytes: 64 * MIB,
      readBudgetBytes: 32 * MIB,
      journalSizeBytes: 4 * MIB,
      journalFileBytes: MIB / 4,
      uploadIntervalMs: 5000,
    });
  }

  /** What is written from now on stays in the journal. */
  stopUploads(): void {
    assert.ok(this.#process !== undefined);
    this.#process.uploads = false;
  }

  async close(): Promise<void> {
    await this.volume.close();
    this.#process = undefined;
  }

  /** SIGKILL. */
  kill(): void {
    if (this.#process !== undefined) this.#process.dead = true;
    this.#process = undefined;
    this.disk = this.disk.reopen();
  }

  async journal(): Promise<MemoryDisk> {
    return (await this.disk.directory("journal")) as MemoryDisk;
  }

  /** Names of the files that were set aside. */
  async quarantined(): Promise<string[]> {
    return (await (await this.journal()).list()).filter((name) => name.endsWith(".quarantine"));
  }

  /** Names of the journal's files, oldest first. */
  async files(): Promise<string[]> {
    return (await (await this.journal()).list()).filter((name) => name.endsWith(".journal"));
  }

  /** Every file of the journal's directory with its bytes. */
  async image(): Promise<Record<string, Buffer>> {
    const disk = await this.journal();
    return Object.fromEntries((await disk.list()).map((name) => [name, disk.contentOf(name)]));
  }

  async damage(name: string, at: number, bytes: Uint8Array): Promise<void> {
    const file = await (await this.journal()).open(name);
    file.writeSync(bytes, at);
    await file.sync();
    await file.close();
  }

  /** Block `lba` becomes `value`. */
  async write(lba: number, value: number): Promise<void> {
    await this.volume.write(lba * BLOCK, Buffer.alloc(BLOCK, value), false);
  }

  async read(lba: number): Promise<number> {
    const target = Buffer.alloc(BLOCK);
    await this.volume.read(lba * BLOCK, target);
    assert.ok(target.every((byte) => byte === target[0]));
    return target[0];
  }

  async values(...lbas: number[]): Promise<number[]> {
    const values: number[] = [];
    for (const lba of lbas) values.push(await this.read(lba));
    return values;
  }
}

export class RecoveryWorld {
  readonly clock = new VirtualClock();
  readonly random = new SeededRandom(7);
  readonly store = new MemoryStore();
  readonly log: Log = nullLog;
  readonly a = new RecoveryNode(this, "node-a");
  readonly b = new RecoveryNode(this, "node-b");
  ref!: VolumeRef;
  /** Keys of objects that an engine has read. */
  readonly read = new Set<string>();
  /** Called before an object is put; what it throws is what the put fails with. */
  beforePut: (key: string) => void | Promise<void> = () => undefined;

  static async create(): Promise<RecoveryWorld> {
    const world = new RecoveryWorld();
    await world.createVolume();
    return world;
  }

  async createVolume(): Promise<void> {
    const sizeBytes = 64 * MIB;
    await this.catalog.create({
      id: volumeId,
      name: "test",
      sizeBytes,
      blockSizeBytes: 4096,
      durability: "local",
      parameters: {},
    });
    const meta = await getMeta(this.store, volumeId);
    assert.ok(meta !== undefined);
    this.ref = { id: meta.id, uid: meta.uid };
  }

  async deleteVolume(): Promise<void> {
    await this.catalog.delete(volumeId);
  }

  get fencing(): FencingEnvironment {
    return { store: this.store, clock: this.clock, random: this.random };
  }

  storeOf(process: Omit<Process, "volume">): ObjectStore {
    const never = async (): Promise<never> => await new Promise(() => undefined);
    return new Proxy<ObjectStore>(this.store, {
      get: (target, name): unknown => {
        const value: unknown = Reflect.get(target, name);
        if (typeof value !== "function") return value;
        return async (...args: unknown[]): Promise<unknown> => {
          if (process.dead) return await never();
          if (name === "putIfAbsent") {
            if (!process.uploads && String(args[0]).startsWith("v1/log/")) return await never();
            await this.beforePut(String(args[0]));
          }
          if (name === "get" || name === "getRange") this.read.add(String(args[0]));
          return (await Reflect.apply(value, target, args)) as unknown;
        };
      },
    });
  }

  logKey(epoch: number, sequence: number): string {
    return segmentKey(this.ref.uid, epoch as Epoch, sequence as SegmentSeq);
  }

  async has(key: string): Promise<boolean> {
    return (await this.store.get(key)) !== undefined;
  }

  async keys(prefix: string): Promise<string[]> {
    return (await this.store.list(prefix)).objects.map(({ key }) => key);
  }

  checkpoints(epoch: number): Promise<string[]> {
    return this.keys(checkpointPrefix(this.ref, epoch as Epoch));
  }

  /** Puts other bytes in an object's place; answers how to undo it. */
  async replace(key: string, change: (bytes: Buffer) => Buffer): Promise<() => Promise<void>> {
    const bytes = await this.store.get(key);
    assert.ok(bytes !== undefined, key);
    const put = async (body: Buffer): Promise<void> => {
      await this.store.delete([key]);
      await this.store.putIfAbsent(key, [body]);
    };
    await put(change(Buffer.from(bytes)));
    return () => put(bytes);
  }

  get catalog(): Catalog {
    const { store, clock, random, log } = this;
    const fence = (volume: VolumeRef): Promise<void> => fenceForDeletion(this.fencing, volume, "controller");
    return new Catalog({ store, clock, random, log, fenceForDeletion: fence });
  }
}
