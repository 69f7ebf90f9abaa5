/** What the catalog's tests share: stores of both kinds, turns instead of time, faults at a chosen request. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Clock } from "../../src/base/clock.ts";
import { OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { type FaultPlan, FaultyStore } from "../../src/store/faulty.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import { listAll, type ObjectStore } from "../../src/store/object-store.ts";
import { Catalog, type CatalogOptions, type VolumeSpec } from "../../src/volume/catalog.ts";
import { decodeNameRecord } from "../../src/volume/format/control-records.ts";
import type { VolumeId } from "../../src/volume/identity.ts";
import { parseKey } from "../../src/volume/keys.ts";

/** A clock that counts turns of the event loop as milliseconds, so that delays reorder requests and cost no time. */
export const turnClock: Clock = {
  now: () => 1_760_000_000_000,
  monotonicMs: () => 0,
  sleep: async (ms) => {
    for (let turn = 0; turn < ms; turn += 1) await nextTurn();
  },
  after: () => ({ cancel: () => undefined }),
  yield: () => nextTurn(),
};

export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Every store that a catalog is tested on; `dispose` leaves nothing behind. */
export const storeKinds: { name: string; open: () => { store: ObjectStore; dispose: () => Promise<void> } }[] = [
  { name: "memory", open: () => ({ store: new MemoryStore(), dispose: async () => undefined }) },
  {
    name: "directory",
    open: () => {
      const root = mkdtempSync(join(tmpdir(), "s3block-catalog-"));
      const store = new DirectoryStore({ root });
      const dispose = async (): Promise<void> => {
        await store.close();
        rmSync(root, { recursive: true });
      };
      return { store, dispose };
    },
  },
];

/** A catalog of its own over `store`, as another process would have one. */
export function catalogOver(store: ObjectStore, seed: number, changes: Partial<CatalogOptions> = {}): Catalog {
  const random = new SeededRandom(seed);
  return new Catalog({
    store,
    clock: turnClock,
    random,
    log: nullLog,
    fenceForDeletion: async () => undefined,
    ...changes,
  });
}

/** `store` with every request delayed by up to `turns`, in an order drawn from `seed`. */
export function shuffled(store: ObjectStore, seed: number, turns = 6): ObjectStore {
  const random = new SeededRandom(seed);
  return new FaultyStore(store, () => ({ delayMs: random.below(turns) }), { clock: turnClock, random });
}

/** `store` seen by a process that dies at its change number `at`: that one and all later requests fail. */
export function dyingAt(store: ObjectStore, at: number, fault: "refused" | "lost-reply"): FaultyStore {
  let changes = 0;
  const plan: FaultPlan = ({ kind }) => {
    if (kind === "put" || kind === "delete") changes += 1;
    if (changes < at) return undefined;
    return { fault: changes === at && (kind === "put" || kind === "delete") ? fault : "refused" };
  };
  return new FaultyStore(store, plan, { clock: turnClock, random: new SeededRandom(1) });
}

export async function keysOf(store: ObjectStore): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of listAll(store, "v1/")) keys.push(key);
  return keys;
}

/** Like keysOf, without the tombstones that a deletion may leave where a request of its had no answer. */
export async function keysBesidesTombstones(store: ObjectStore): Promise<string[]> {
  const keys: string[] = [];
  for (const key of await keysOf(store)) {
    const parsed = parseKey(key);
    const isTombstone = parsed?.kind === "name" && "tombstone" in decodeNameRecord((await store.get(key))!, parsed);
    if (!isTombstone) keys.push(key);
  }
  return keys;
}

export function spec(id: string, changes: Partial<VolumeSpec> = {}): VolumeSpec {
  return {
    id: id as VolumeId,
    name: `name of ${id}`,
    sizeBytes: 1024 ** 3,
    blockSizeBytes: 4096,
    durability: "s3",
    fsType: "ext4",
    parameters: { bucket: "b" },
    ...changes,
  };
}

/** "ok", or the kind of the OperationError it failed with. */
export async function outcomeOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "ok";
  } catch (error) {
    if (error instanceof OperationError) return error.kind;
    throw error;
  }
}
