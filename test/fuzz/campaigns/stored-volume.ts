/**
 * A volume as it stands in the object store after some years in small: four epochs, checkpoints, publications of
 * several numbers, and a log that goes on behind the last checkpoint. The second and the third epoch write the same
 * blocks of the first shard and nothing else, so that their map objects have one page each, of one length at one place:
 * the older can stand in for the newer, and only the checksum knows. Built once; every trial opens it over a store in which one object was damaged.
 */
import { MemoryDisk } from "../../../src/base/memory-disk.ts";
import { nullLog } from "../../../src/base/log.ts";
import { OperationError } from "../../../src/base/errors.ts";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { cutPage } from "../../../src/store/list-page.ts";
import { MemoryStore } from "../../../src/store/memory.ts";
import {
  type ByteRange,
  listAll,
  type ListOptions,
  type ListPage,
  type ObjectStore,
  type PutOutcome,
} from "../../../src/store/object-store.ts";
import { Catalog } from "../../../src/volume/catalog.ts";
import { Engine } from "../../../src/volume/engine.ts";
import { mustVolumeId } from "../../../src/volume/identity.ts";
import type { Volume } from "../../../src/volume/volume.ts";
import { VirtualClock } from "../../simulation/virtual-clock.ts";

const BLOCK = 4096;
const MIB = 1024 * 1024;
const SIZE_BYTES = 384 * MIB;
export const volumeId = mustVolumeId("vol-damaged");

/** Objects that are never changed, and what a trial puts beside them. */
export class TrialStore implements ObjectStore {
  readonly location = "memory:";
  readonly #objects: Map<string, Buffer>;

  constructor(objects: ReadonlyMap<string, Buffer>) {
    this.#objects = new Map(objects);
  }

  /** What the key holds from now on, whatever it held. */
  replace(key: string, body: Buffer): void {
    this.#objects.set(key, body);
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[]): Promise<PutOutcome> {
    if (this.#objects.has(key)) return "exists";
    this.#objects.set(key, Buffer.concat(body));
    return "created";
  }

  async get(key: string): Promise<Buffer | undefined> {
    const body = this.#objects.get(key);
    return body === undefined ? undefined : Buffer.from(body);
  }

  async getRange(key: string, range: ByteRange): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    const body = this.#objects.get(key);
    if (body === undefined) return undefined;
    const bytes = Buffer.from(body.subarray(range.offset, range.offset + range.length));
    return { bytes, totalBytes: body.length };
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    const { after } = options;
    const keys = [...this.#objects.keys()].filter(
      (key) => key.startsWith(prefix) && (after === undefined || key > after),
    );
    const listed = keys.toSorted((left, right) => (left < right ? -1 : 1));
    return cutPage(
      prefix,
      listed.map((key) => ({ key, sizeBytes: this.#objects.get(key)?.length ?? 0, modifiedMs: 0 })),
      options,
    );
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) this.#objects.delete(key);
  }

  async close(): Promise<void> {}
}

export interface StoredVolume {
  objects: ReadonlyMap<string, Buffer>;
  /** What each block that was ever written holds; undefined: zeroes. */
  blocks: ReadonlyMap<number, Buffer | undefined>;
}

interface Opened {
  volume: Volume;
  leave(): Promise<void>;
}

export async function openVolume(store: ObjectStore, seed: number): Promise<Opened> {
  const clock = new VirtualClock();
  const engine = await Engine.start({
    clock,
    random: new SeededRandom(seed),
    log: nullLog,
    nodeId: "node-1",
    cacheDisk: undefined,
    cacheSizeBytes: 0,
    mapBudgetBytes: 16 * MIB,
    uploadBudgetBytes: 64 * MIB,
    readBudgetBytes: 8 * MIB,
    journalSizeBytes: 4 * MIB,
    journalFileBytes: MIB,
    uploadIntervalMs: 5000,
  });
  const disk = new MemoryDisk();
  try {
    const volume = await engine.open(volumeId, {
      store,
      journalDisk: disk,
      mode: "take",
      readOnly: false,
      publication: 0,
    });
    const leave = async (): Promise<void> => {
      await volume.leave();
      await engine.close();
    };
    return { volume, leave };
  } catch (error) {
    await engine.close();
    throw error;
  }
}

/** The LBAs that are written: a few in each of three shards, apart from each other so that runs stay short. */
function lbas(): number[] {
  return [0, 1, 2].flatMap((shard) => Array.from({ length: 12 }, (_, index) => shard * 32_768 + index * 7));
}

export async function buildStoredVolume(seed: number): Promise<StoredVolume> {
  const store = new MemoryStore();
  const random = new SeededRandom(seed);
  const clock = new VirtualClock();
  const catalog = new Catalog({ store, clock, random, log: nullLog, fenceForDeletion: () => Promise.resolve() });
  const parameters = {};
  await catalog.create({
    id: volumeId,
    name: "d",
    sizeBytes: SIZE_BYTES,
    blockSizeBytes: BLOCK,
    durability: "s3",
    parameters,
  });
  for (const nodeId of ["node-1", "node-2", "node-1"]) {
    await catalog.publish(volumeId, nodeId, false);
    await catalog.unpublish(volumeId, nodeId);
  }
  const blocks = new Map<number, Buffer | undefined>();
  for (let epoch = 1; epoch <= 4; epoch += 1) {
    const { volume, leave } = await openVolume(store, seed + epoch);
    for (let flush = 0; flush < 3; flush += 1) {
      for (const lba of lbas()) {
        const isFirstShard = lba < 32_768;
        const isSkipped = isFirstShard ? flush > 0 || epoch === 4 : epoch === 2 || epoch === 3 || random.below(3) === 0;
        if (isSkipped) continue;
        const content = !isFirstShard && random.below(12) === 0 ? undefined : random.bytes(BLOCK);
        await (content === undefined
          ? volume.writeZeroes(lba * BLOCK, BLOCK, false)
          : volume.write(lba * BLOCK, content, false));
        blocks.set(lba, content);
      }
      await volume.flush();
    }
    // The last owner dies: what it flushed stands in the log alone.
    await (epoch < 4 ? volume.close() : leave());
  }
  const objects = new Map<string, Buffer>();
  for await (const { key } of listAll(store, "v1/")) objects.set(key, (await store.get(key))!);
  return { objects, blocks };
}

/** Opens the volume and reads every block: how many are right, and how many are refused as corrupt. */
export async function readStoredVolume(
  store: ObjectStore,
  blocks: StoredVolume["blocks"],
): Promise<{ opened: boolean; right: number; refused: number; wrong: number[] }> {
  const outcome = { opened: false, right: 0, refused: 0, wrong: [] as number[] };
  let opened: Opened;
  try {
    opened = await openVolume(store, 99);
  } catch (error) {
    if (error instanceof OperationError) return outcome;
    throw error;
  }
  outcome.opened = true;
  const target = Buffer.alloc(BLOCK);
  const zeroes = Buffer.alloc(BLOCK);
  for (const [lba, content] of blocks) {
    try {
      await opened.volume.read(lba * BLOCK, target);
      if (target.equals(content ?? zeroes)) outcome.right += 1;
      else outcome.wrong.push(lba);
    } catch (error) {
      if (!(error instanceof OperationError) || error.kind !== "corrupt") throw error;
      outcome.refused += 1;
    }
  }
  await opened.leave();
  return outcome;
}
