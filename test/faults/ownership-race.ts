/**
 * Several nodes that take one volume away from each other without end, each by the real engine over a store that loses
 * replies: who is told that a flush got through, who is told that it was fenced, and what each new owner finds.
 *
 * Every block written says (epoch, counter), so that for each opening it can be told:
 * - every flush that was ever acknowledged to an earlier owner is in what a later one found, whenever it was acknowledged;
 * - what a former owner wrote appears in no opening after one that did not show it;
 * - nobody was fenced without a later claim, and nobody was acknowledged a flush that it began after a later owner had
 *   opened.
 */
import assert from "node:assert/strict";
import type { Clock } from "../../src/base/clock.ts";
import { isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { Engine } from "../../src/volume/engine.ts";
import { newestClaim } from "../../src/volume/fencing.ts";
import { getMeta } from "../../src/volume/names.ts";
import { mustVolumeId, type VolumeId } from "../../src/volume/identity.ts";
import type { Volume } from "../../src/volume/volume.ts";

const MIB = 1024 * 1024;
const BLOCK = 4096;
const BLOCKS = 8;

export interface RaceOptions {
  clock: Clock;
  random: SeededRandom;
  volumeId: string;
  /** What each node reaches the store by. */
  stores: readonly ObjectStore[];
  /** No new ownership begins once this is true. */
  isDone: () => boolean;
  /** Longest time that an owner is left alone, in milliseconds. */
  peaceMs: number;
}

export interface RaceResult {
  openings: number;
  acknowledgedFlushes: number;
  fencedOwners: number;
  /** Openings that ended because another node was first. */
  lostRaces: number;
}

interface Version {
  epoch: number;
  counter: number;
}

interface Acknowledged extends Version {
  block: number;
}

class Race {
  readonly result: RaceResult = { openings: 0, acknowledgedFlushes: 0, fencedOwners: 0, lostRaces: 0 };
  readonly #options: RaceOptions;
  readonly #volumeId: VolumeId;
  /** What each epoch found when it had opened, in the order of epochs. */
  readonly #found = new Map<number, Version[]>();
  /** The newest acknowledged flush of each block, by epoch. */
  readonly #acknowledged = new Map<number, Acknowledged[]>();
  #highestOpened = 0;
  #counter = 0;

  constructor(options: RaceOptions) {
    this.#options = options;
    this.#volumeId = mustVolumeId(options.volumeId);
  }

  async run(): Promise<RaceResult> {
    const { clock, random, stores } = this.#options;
    const parts = { store: stores[0], clock, random, log: nullLog };
    const catalog = new Catalog({ ...parts, fenceForDeletion: () => Promise.resolve() });
    const shape = { sizeBytes: 8 * MIB, blockSizeBytes: BLOCK, durability: "s3" as const, parameters: {} };
    await catalog.create({ id: this.#volumeId, name: "race", ...shape });
    await Promise.all(stores.map((store, node) => this.#contend(store, node)));
    return this.result;
  }

  /** One node: takes the volume, writes until it is fenced, and comes back. */
  async #contend(store: ObjectStore, node: number): Promise<void> {
    const { clock, random, isDone, peaceMs } = this.#options;
    const disk = new MemoryDisk();
    while (!isDone()) {
      await clock.sleep(random.fraction() * peaceMs);
      const engine = await Engine.start({
        clock,
        random,
        log: nullLog,
        nodeId: `node-${node}`,
        cacheDisk: undefined,
        cacheSizeBytes: 0,
        mapBudgetBytes: MIB,
        uploadBudgetBytes: 32 * MIB,
        readBudgetBytes: 8 * MIB,
        journalSizeBytes: 4 * MIB,
        journalFileBytes: MIB / 2,
        uploadIntervalMs: 1000,
      });
      const volume = await this.#open(engine, store, disk);
      if (volume !== undefined) await this.#own(volume);
      await engine.close();
    }
  }

  async #open(engine: Engine, store: ObjectStore, disk: MemoryDisk): Promise<Volume | undefined> {
    const journalDisk = await disk.directory("journal");
    const options = { store, journalDisk, mode: "take" as const, readOnly: false, publication: 0 };
    try {
      const volume = await engine.open(this.#volumeId, options);
      this.#highestOpened = Math.max(this.#highestOpened, volume.epoch);
      this.result.openings += 1;
      await this.#look(volume);
      return volume;
    } catch (error) {
      assert.ok(isKind(error, "busy", "fenced"), `an opening ended with ${String(error)}`);
      this.result.lostRaces += 1;
      return undefined;
    }
  }

  /** Writes and flushes until another node has taken the volume. */
  async #own(volume: Volume): Promise<void> {
    const { clock, random, isDone } = this.#options;
    try {
      while (!isDone()) {
        const block = random.below(BLOCKS);
        const version = { epoch: volume.epoch, counter: (this.#counter += 1) };
        const openedBefore = this.#highestOpened;
        await volume.write(block * BLOCK, encode(version), false);
        await volume.flush();
        assert.ok(openedBefore <= volume.epoch, `epoch ${volume.epoch} flushed while ${openedBefore} had opened`);
        this.#acknowledge({ ...version, block });
        await clock.sleep(random.fraction() * 20);
      }
      await volume.close();
    } catch (error) {
      assert.ok(isKind(error, "fenced"), `an owner failed with ${String(error)}`);
      const newest = await this.#newestEpoch();
      assert.ok(newest > volume.epoch, `epoch ${volume.epoch} was fenced, and nobody came after it`);
      this.result.fencedOwners += 1;
      await volume.close();
    }
  }

  async #newestEpoch(): Promise<number> {
    const { clock, random, stores } = this.#options;
    const meta = await getMeta(stores[0], this.#volumeId);
    assert.ok(meta !== undefined, "the volume is there");
    const claim = await newestClaim({ store: stores[0], clock, random }, { id: meta.id, uid: meta.uid });
    return claim?.epoch ?? 0;
  }

  #acknowledge(flushed: Acknowledged): void {
    this.result.acknowledgedFlushes += 1;
    const ofEpoch = this.#acknowledged.get(flushed.epoch) ?? [];
    ofEpoch[flushed.block] = flushed;
    this.#acknowledged.set(flushed.epoch, ofEpoch);
    for (const [epoch, found] of this.#found) if (epoch > flushed.epoch) mustHold(found, flushed, epoch);
  }

  /** What the new owner finds, held against what was acknowledged and what others have found. */
  async #look(volume: Volume): Promise<void> {
    const image = Buffer.alloc(BLOCKS * BLOCK);
    await volume.read(0, image);
    const found = Array.from({ length: BLOCKS }, (_, block) => decode(image.subarray(block * BLOCK)));
    const earlier = [...this.#found].filter(([epoch]) => epoch < volume.epoch).toSorted(([a], [b]) => b - a)[0];
    for (const [block, version] of found.entries()) {
      assert.ok(version.epoch < volume.epoch, `epoch ${volume.epoch} finds a write of ${version.epoch}`);
      if (earlier === undefined || version.epoch >= earlier[0]) continue;
      assert.deepEqual(version, earlier[1][block], `epoch ${volume.epoch} finds what ${earlier[0]} did not`);
    }
    this.#found.set(volume.epoch, found);
    for (const flushes of this.#acknowledged.values()) {
      for (const flushed of flushes) {
        if (flushed !== undefined && flushed.epoch < volume.epoch) mustHold(found, flushed, volume.epoch);
      }
    }
  }
}

/** Runs the race to its end; rejects at the first thing that must not be. */
export function runRace(options: RaceOptions): Promise<RaceResult> {
  return new Race(options).run();
}

function mustHold(found: readonly Version[], flushed: Acknowledged, epoch: number): void {
  const { block } = flushed;
  const version = found[block];
  const holds =
    version.epoch > flushed.epoch || (version.epoch === flushed.epoch && version.counter >= flushed.counter);
  assert.ok(holds, `epoch ${epoch} misses a flush acknowledged to ${flushed.epoch}: block ${block}`);
}

function encode({ epoch, counter }: Version): Buffer {
  const bytes = Buffer.alloc(BLOCK, counter & 0xff);
  bytes.writeUInt32LE(epoch, 0);
  bytes.writeUInt32LE(counter, 4);
  return bytes;
}

function decode(bytes: Buffer): Version {
  return { epoch: bytes.readUInt32LE(0), counter: bytes.readUInt32LE(4) };
}
