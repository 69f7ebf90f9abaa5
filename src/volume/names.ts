/**
 * Who has a name: v1/volumes/<id>/meta/<n>. A record either binds the name to a volume (its metadata) or is a tombstone
 * that frees the name from one. Whether a binding counts is decided once, under its uid: <uid>/meta/1 confirms or refuses
 * it. Later metadata of the volume is <uid>/meta/2 and so on; the highest number counts.
 *
 * Requests may take effect at any time after they were sent, also when their sender is gone. Invariants
 * - Of the bindings of a name at most one is confirmed and not freed. Confirmed is only what stands highest and has
 *   nothing below it that is confirmed or undecided, in a look that began after it stood there.
 * - Every request that creates a binding has a uid of its own and is sent once: what was removed never comes back.
 * - A volume's confirmation is removed before the mark of its deletion: a listing that shows the one without the other
 *   shows a moment before the mark.
 * - No request that deletes record n is on its way while a volume has the name by record n: there is one for it, or a
 *   tombstone above it, behind which n is never confirmed again. Tombstones are never deleted.
 * Tables: name-tables.ts. Reason and proof: docs/decisions/0002-names-that-come-back.md.
 */
import type { Clock } from "../base/clock.ts";
import { describe, isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import { listAll, type ObjectStore } from "../store/object-store.ts";
import {
  decodeConfirmation,
  decodeMeta,
  decodeNameRecord,
  encodeConfirmation,
  encodeMeta,
  encodeRemoval,
  encodeTombstone,
  type NameTombstone,
  type VolumeMeta,
} from "./format/control-records.ts";
import { NONCE_BYTES } from "./format/envelope.ts";
import type { VolumeId, VolumeUid } from "./identity.ts";
import { metaKey, metaPrefix, nameKey, namePrefix, parseKey, removalKey, type VolumeRef } from "./keys.ts";
import { type ConfirmationState, nameTable, releaseTable } from "./name-tables.ts";
import { getDecoded } from "./verified-read.ts";

const MAX_ROUNDS = 64;

export interface NamesParts {
  store: ObjectStore;
  clock: Pick<Clock, "now">;
  random: Random;
  log: Log;
}

/** A volume that has its name. */
export interface NamedVolume {
  /** The newest metadata, also where it is marked deleted. */
  meta: VolumeMeta;
  /** Number of the record that binds the name to it. */
  binding: number;
  /** For the next record of its metadata. */
  nextMeta: number;
}

interface Look {
  found: NamedVolume | undefined;
  /** Bindings that nothing has decided about, with what a creation or deletion does about them. */
  undecided: { uid: VolumeUid; action: "confirm" | "refuse" }[];
  /** Above all records of the name. */
  nextNumber: number;
}

/** The newest metadata, also of a volume that is being deleted (`deleted`); undefined where the name is free. */
export async function getMeta(store: ObjectStore, id: VolumeId): Promise<VolumeMeta | undefined> {
  return (await lookAt(store, id)).found?.meta;
}

/** What is known of a volume's name from outside, for who opens it. */
export type NameView =
  | { state: "in force"; named: NamedVolume }
  | { state: "being deleted" }
  /** The records of the name are there, and bind it to no volume. */
  | { state: "given back" }
  /** The store shows no record of this name: there never was one, all are gone, or it is not the right place. */
  | { state: "nothing" };

export async function viewName(store: ObjectStore, id: VolumeId): Promise<NameView> {
  const { found, nextNumber } = await lookAt(store, id);
  if (found === undefined) return { state: nextNumber === 1 ? "nothing" : "given back" };
  return found.meta.deleted ? { state: "being deleted" } : { state: "in force", named: found };
}

/** The same, in one step, for a volume that had its name at an earlier look. */
export async function viewAgain(store: ObjectStore, named: NamedVolume): Promise<NameView> {
  const { meta, binding } = named;
  const [record, numbers] = await Promise.all([
    readNameRecord(store, meta.id, binding),
    listNumbers(store, metaPrefix(meta)),
  ]);
  const isBound = record !== undefined && "meta" in record && record.meta.uid === meta.uid;
  // Any other change, and whatever is not as it was, is worth a whole look.
  if (isBound && numbers.includes(1) && Math.max(...numbers) + 1 === named.nextMeta)
    return { state: "in force", named };
  const view = await viewName(store, meta.id);
  if (view.state === "in force" && view.named.meta.uid !== meta.uid) return { state: "given back" };
  return view;
}

/**
 * Who has the name, once every undecided binding is decided. `own`: a binding whose creation was answered before this
 * call. `nextNumber` is for the next record of the name.
 */
export async function settleName(
  parts: NamesParts,
  id: VolumeId,
  own?: VolumeUid,
): Promise<{ found: NamedVolume | undefined; nextNumber: number }> {
  let seen: readonly (VolumeUid | undefined)[] = [own];
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const { found, undecided, nextNumber } = await lookAt(parts.store, id);
    if (found !== undefined || undecided.length === 0) return { found, nextNumber };
    // A second look: the first one may have met a deletion, or have listed the lower numbers before this one came.
    const known = undecided.filter(({ uid }) => seen.includes(uid));
    seen = [own, ...undecided.map(({ uid }) => uid)];
    const late = known.filter(({ action }) => action === "refuse");
    if (late.length > 0) for (const { uid } of late) await decide(parts, { id, uid }, false);
    else if (undecided.length === 1 && known.length === 1) await decide(parts, { id, uid: known[0].uid }, true);
  }
  throw contended(id);
}

/**
 * Binds the name to a new volume by one request, for which the caller has drawn the uid. "unavailable": it may have
 * taken effect, or may still. Whether the volume has the name is said by settleName.
 */
export async function bindName(parts: NamesParts, meta: VolumeMeta): Promise<"created" | "exists"> {
  const body = encodeMeta(parts.random.bytes(NONCE_BYTES), meta);
  return await parts.store.putIfAbsent(nameKey(meta.id, meta.number), [body], { once: true });
}

/** Writes the next record of the volume's metadata; false where somebody else was first. */
export async function appendMeta(parts: NamesParts, { meta, nextMeta }: NamedVolume, deleted: true): Promise<boolean> {
  const body = encodeMeta(parts.random.bytes(NONCE_BYTES), { ...meta, number: nextMeta, deleted });
  return (await parts.store.putIfAbsent(metaKey(meta, nextMeta), [body])) === "created";
}

/**
 * Frees the name from a volume that was marked deleted and has nothing any more; may be repeated by anybody. Leaves no
 * trace where the one request that deletes the record was answered, or has taken effect when the name is looked at.
 */
export async function releaseName(parts: NamesParts, volume: VolumeRef, binding: number): Promise<void> {
  let removal: "not asked" | "created by this call" | "there before" = "not asked";
  let request: "not sent" | "sent" = "not sent";
  const key = nameKey(volume.id, binding);
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const { name, nextNumber } = await lookAtBinding(parts.store, volume, binding);
    switch (releaseTable.decide({ name, removal, request }).action) {
      case "create the removal":
        removal = (await createRemoval(parts, volume)) === "created" ? "created by this call" : "there before";
        break;
      case "delete":
        request = "sent";
        await parts.store
          .delete([key], { once: true })
          .catch((error: unknown) => mustBeUnanswered(parts, volume, error));
        break;
      case "put a tombstone":
        await putTombstone(parts, volume.id, { uid: volume.uid, number: nextNumber, frees: binding });
        break;
      case "clear":
        if (await isBoundTo(parts.store, volume, binding)) await parts.store.delete([key]);
        return;
      default:
        return;
    }
  }
  throw contended(volume.id);
}

/**
 * Those of `uids`, listed before this call, that have no name any more: nothing of such a volume is ever looked at again,
 * because its records are written only once the name was bound to it. Bindings that a tombstone has freed are removed.
 */
export async function takeNameless(store: ObjectStore, id: VolumeId, uids: readonly VolumeUid[]): Promise<VolumeRef[]> {
  if (uids.length === 0) return [];
  const freed = new Set<string>();
  const bound = new Set<VolumeUid>();
  // Downwards: a binding is only removed where it was read after its tombstone.
  for (const number of (await listNumbers(store, namePrefix(id))).toReversed()) {
    const record = await readNameRecord(store, id, number);
    if (record === undefined) continue;
    if ("tombstone" in record) freed.add(nameOf(record.tombstone.frees, record.tombstone.uid));
    else if (freed.has(nameOf(number, record.meta.uid))) await store.delete([nameKey(id, number)]);
    else bound.add(record.meta.uid);
  }
  return uids.filter((uid) => !bound.has(uid)).map((uid) => ({ id, uid }));
}

/** From the highest record down to the volume that has the name: mostly one record. */
async function lookAt(store: ObjectStore, id: VolumeId): Promise<Look> {
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const numbers = await listNumbers(store, namePrefix(id));
    const look = await lookDown(store, id, numbers.toReversed());
    if (look !== undefined) return look;
  }
  throw contended(id);
}

/** Undefined where a record has gone since it was listed, or is changing. */
async function lookDown(store: ObjectStore, id: VolumeId, numbers: readonly number[]): Promise<Look | undefined> {
  const [highest = 0] = numbers;
  const look: Look = { found: undefined, undecided: [], nextNumber: highest + 1 };
  const freed = new Set<string>();
  for (const number of numbers) {
    const record = await readNameRecord(store, id, number);
    if (record === undefined) return undefined;
    if ("tombstone" in record) {
      freed.add(nameOf(record.tombstone.frees, record.tombstone.uid));
      continue;
    }
    const { meta } = record;
    const tombstone = freed.has(nameOf(number, meta.uid)) ? "yes" : "no";
    const own = tombstone === "yes" ? undefined : await readOwn(store, meta);
    if (own === "changing") return undefined;
    const confirmation = own?.confirmation ?? "none";
    const place = number === highest ? "the highest" : "below another";
    const { action } = nameTable.decide({ tombstone, place, confirmation });
    if (action === "in force") {
      look.found = { meta: own!.newest, binding: number, nextMeta: own!.nextMeta };
      return look;
    }
    if (action !== "leftover") look.undecided.push({ uid: meta.uid, action });
  }
  return look;
}

/** What a volume's own records say; "changing" where the answers do not belong to one moment. */
async function readOwn(
  store: ObjectStore,
  bound: VolumeMeta,
): Promise<{ confirmation: ConfirmationState; newest: VolumeMeta; nextMeta: number } | "changing" | undefined> {
  const [numbers, decided] = await Promise.all([
    listNumbers(store, metaPrefix(bound)),
    getDecoded(store, metaKey(bound, 1), (bytes) => decodeConfirmation(bytes, bound)),
  ]);
  if (decided === undefined) return undefined;
  // Confirmed after the listing, or removed before it, with the mark of its deletion.
  if (!numbers.includes(1)) return "changing";
  const confirmation = decided.confirmed ? "confirmed" : "refused";
  const last = Math.max(...numbers);
  if (last === 1) return { confirmation, newest: bound, nextMeta: 2 };
  const expected = { id: bound.id, number: last };
  const newest = await getDecoded(store, metaKey(bound, last), (bytes) => decodeMeta(bytes, expected));
  return newest === undefined ? "changing" : { confirmation, newest, nextMeta: last + 1 };
}

async function lookAtBinding(
  store: ObjectStore,
  volume: VolumeRef,
  binding: number,
): Promise<{ name: "bound to the volume" | "freed by a tombstone" | "not bound to it"; nextNumber: number }> {
  const numbers = await listNumbers(store, namePrefix(volume.id));
  const nextNumber = Math.max(0, ...numbers) + 1;
  for (const number of numbers.toReversed()) {
    const record = number > binding ? await readNameRecord(store, volume.id, number) : undefined;
    if (record === undefined || !("tombstone" in record)) continue;
    const { frees, uid } = record.tombstone;
    if (frees === binding && uid === volume.uid) return { name: "freed by a tombstone", nextNumber };
  }
  const isBound = await isBoundTo(store, volume, binding);
  return { name: isBound ? "bound to the volume" : "not bound to it", nextNumber };
}

async function isBoundTo(store: ObjectStore, volume: VolumeRef, binding: number): Promise<boolean> {
  const record = await readNameRecord(store, volume.id, binding);
  return record !== undefined && "meta" in record && record.meta.uid === volume.uid;
}

async function readNameRecord(
  store: ObjectStore,
  id: VolumeId,
  number: number,
): Promise<ReturnType<typeof decodeNameRecord> | undefined> {
  return await getDecoded(store, nameKey(id, number), (bytes) => decodeNameRecord(bytes, { id, number }));
}

async function decide(parts: NamesParts, volume: VolumeRef, confirmed: boolean): Promise<void> {
  const { store, clock, random } = parts;
  const header = { uid: volume.uid, nonce: random.bytes(NONCE_BYTES) };
  await store.putIfAbsent(metaKey(volume, 1), [encodeConfirmation(header, { confirmed, timeMs: clock.now() })]);
}

async function createRemoval(parts: NamesParts, volume: VolumeRef): Promise<"created" | "exists"> {
  const { store, clock, random } = parts;
  const header = { uid: volume.uid, nonce: random.bytes(NONCE_BYTES) };
  return await store.putIfAbsent(removalKey(volume), [encodeRemoval(header, clock.now())]);
}

async function putTombstone(parts: NamesParts, id: VolumeId, freed: Omit<NameTombstone, "timeMs">): Promise<void> {
  const { store, clock, random, log } = parts;
  const body = encodeTombstone(random.bytes(NONCE_BYTES), id, { ...freed, timeMs: clock.now() });
  const outcome = await store.putIfAbsent(nameKey(id, freed.number), [body]);
  if (outcome === "exists") return;
  log.info("the name is freed by a tombstone: the deletion of its record may still take effect", {
    volumeId: id,
    uid: freed.uid,
    number: freed.number,
  });
}

function mustBeUnanswered(parts: NamesParts, volume: VolumeRef, error: unknown): void {
  if (!isKind(error, "unavailable")) throw error;
  parts.log.warn("no answer to the deletion of the name's record", { volumeId: volume.id, error: describe(error) });
}

async function listNumbers(store: ObjectStore, prefix: string): Promise<number[]> {
  const numbers: number[] = [];
  for await (const { key } of listAll(store, prefix)) {
    const parsed = parseKey(key);
    if (parsed?.kind === "name" || parsed?.kind === "meta") numbers.push(parsed.number);
  }
  return numbers;
}

function nameOf(number: number, uid: VolumeUid): string {
  return `${number}/${uid}`;
}

function contended(id: VolumeId): OperationError {
  return new OperationError("busy", "who has the name changes all the time, retry", { context: { volumeId: id } });
}
