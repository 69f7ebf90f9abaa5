/**
 * A volume's metadata: v1/volumes/<id>/meta/<n>, of which the highest number counts. Used by the catalog, which
 * changes it, and by the engine, which reads it.
 *
 * Invariants
 * - meta/1 says which incarnation (uid) has the id; records of another uid are leftovers of an earlier one and ignored.
 * - The next number is one above all that exist, whoever's: a number is never written while it is taken.
 * - A deletion removes meta/1 first, which ends the incarnation in one step: the marker never goes before it, so no
 *   moment exists at which a half-deleted volume looks alive.
 */
import { OperationError } from "../base/errors.ts";
import { listAll, type ObjectStore } from "../store/object-store.ts";
import { decodeMeta, type VolumeMeta } from "./format/control-records.ts";
import type { VolumeId } from "./identity.ts";
import { metaKey, metaPrefix, parseKey } from "./keys.ts";

const MAX_ROUNDS = 64;

export interface StoredMeta {
  /** The newest record of the id's incarnation, also where it is marked deleted; undefined where there is none. */
  meta: VolumeMeta | undefined;
  /** Every number that exists, ascending, those of leftovers too. */
  numbers: number[];
}

/** The newest metadata, also of a volume that is being deleted (`deleted`); undefined where the id is free. */
export async function getMeta(store: ObjectStore, id: VolumeId): Promise<VolumeMeta | undefined> {
  return (await readMeta(store, id)).meta;
}

/** Reads list and records; starts again where a deletion takes them away in between. */
export async function readMeta(store: ObjectStore, id: VolumeId): Promise<StoredMeta> {
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const numbers = await listNumbers(store, id);
    if (numbers[0] !== 1) return { meta: undefined, numbers };
    const first = await readRecord(store, id, 1);
    if (first === undefined) continue;
    const meta = await newestOf(store, first, numbers);
    if (meta !== undefined) return { meta, numbers };
  }
  throw new OperationError("busy", "metadata of the volume changes all the time, retry", { context: { volumeId: id } });
}

/** The number for the next record. */
export function nextMetaNumber(numbers: readonly number[]): number {
  return Math.max(0, ...numbers) + 1;
}

async function newestOf(
  store: ObjectStore,
  first: VolumeMeta,
  numbers: readonly number[],
): Promise<VolumeMeta | undefined> {
  for (const number of numbers.toReversed()) {
    if (number === first.number) return first;
    const record = await readRecord(store, first.id, number);
    if (record === undefined) return undefined;
    if (record.uid === first.uid) return record;
  }
  return undefined;
}

async function readRecord(store: ObjectStore, id: VolumeId, number: number): Promise<VolumeMeta | undefined> {
  const bytes = await store.get(metaKey(id, number));
  return bytes === undefined ? undefined : decodeMeta(bytes, { id, number });
}

async function listNumbers(store: ObjectStore, id: VolumeId): Promise<number[]> {
  const numbers: number[] = [];
  for await (const { key } of listAll(store, metaPrefix(id))) {
    const parsed = parseKey(key);
    if (parsed?.kind === "meta") numbers.push(parsed.number);
  }
  return numbers;
}
