/**
 * Publications: which node may own a volume, as a row of write-once records <id>/<uid>/publication/<n>, of which the
 * highest number counts. They order the control plane; the data plane is made safe by epochs and fences alone.
 *
 * Invariants
 * - A change is decided on the newest record n and takes effect as n + 1, created only where absent.
 * - Old records are deleted, so a writer that stood still may create a number below the newest. Hence a change counts
 *   only when, read again afterwards, its number is the highest; else the writer decides anew. The newest two records
 *   are never deleted while the volume lives.
 */
import type { Clock } from "../base/clock.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import { listAll, type ObjectStore } from "../store/object-store.ts";
import { decodePublication, encodePublication, type PublicationRecord } from "./format/control-records.ts";
import { NONCE_BYTES } from "./format/envelope.ts";
import { parseKey, publicationKey, publicationPrefix, type VolumeRef } from "./keys.ts";
import { getDecoded } from "./verified-read.ts";

const MAX_ROUNDS = 64;
const KEPT_RECORDS = 2;

/** A node's right to own a volume. */
export interface Publication {
  /** Grows with every change; an owner records it in its epoch claim. */
  number: number;
  nodeId: string;
  readOnly: boolean;
}

export interface PublicationOptions {
  store: ObjectStore;
  clock: Pick<Clock, "now">;
  random: Random;
  log: Log;
}

/** The publication in force; undefined where the volume was never published, or was released. */
export async function getPublication(store: ObjectStore, volume: VolumeRef): Promise<Publication | undefined> {
  return inForce((await readNewest(store, volume)).record);
}

/**
 * Publishes to a node, or answers what is in force for the same node. "in-use" where another node has it (named in
 * the message), "conflict" where this node has it with other access, "busy" where changes never cease. `created` tells whether this call wrote the record.
 */
export async function publish(
  options: PublicationOptions,
  volume: VolumeRef,
  wanted: { nodeId: string; readOnly: boolean },
): Promise<{ publication: Publication; created: boolean }> {
  const { nodeId, readOnly } = wanted;
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const { record, numbers } = await readNewest(options.store, volume);
    const current = inForce(record);
    if (current === undefined) {
      const number = (record?.number ?? 0) + 1;
      const next = { number, nodeId, readOnly, timeMs: options.clock.now() };
      if (await append(options, volume, next, numbers)) {
        return { publication: { number, nodeId, readOnly }, created: true };
      }
      continue;
    }
    if (current.nodeId !== nodeId) {
      throw new OperationError("in-use", "volume is published to another node, unpublish it there first", {
        context: { volumeId: volume.id, nodeId: current.nodeId },
      });
    }
    if (current.readOnly !== readOnly) {
      throw new OperationError("conflict", "volume is published to this node with other access, unpublish it first", {
        context: { volumeId: volume.id, nodeId, readOnly: current.readOnly },
      });
    }
    return { publication: current, created: false };
  }
  throw contended(volume);
}

/** Releases the volume where `nodeId` has it, or whoever has it where `nodeId` is empty; else nothing happens. */
export async function unpublish(options: PublicationOptions, volume: VolumeRef, nodeId: string): Promise<void> {
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const { record, numbers } = await readNewest(options.store, volume);
    const current = inForce(record);
    if (current === undefined || (nodeId !== "" && current.nodeId !== nodeId)) return;
    const next = { number: current.number + 1, nodeId: null, readOnly: false, timeMs: options.clock.now() };
    if (await append(options, volume, next, numbers)) return;
  }
  throw contended(volume);
}

function inForce(record: PublicationRecord | undefined): Publication | undefined {
  if (record === undefined || record.nodeId === null) return undefined;
  return { number: record.number, nodeId: record.nodeId, readOnly: record.readOnly };
}

/** Creates `next` and tells whether it is the newest now; where it is, older records are removed in the background. */
async function append(
  options: PublicationOptions,
  volume: VolumeRef,
  next: PublicationRecord,
  older: readonly number[],
): Promise<boolean> {
  const bytes = encodePublication({ uid: volume.uid, nonce: options.random.bytes(NONCE_BYTES) }, next);
  const outcome = await options.store.putIfAbsent(publicationKey(volume, next.number), [bytes]);
  if (outcome === "exists") return false;
  const numbers = await listNumbers(options.store, volume);
  if (numbers.at(-1) !== next.number) return false;
  const outdated = older.slice(0, Math.max(0, older.length + 1 - KEPT_RECORDS));
  if (outdated.length > 0) {
    const keys = outdated.slice(0, 1000).map((number) => publicationKey(volume, number));
    options.store.delete(keys).catch((error: unknown) => {
      options.log.debug("old publications stay for now", { volumeId: volume.id, error: describe(error) });
    });
  }
  return true;
}

async function readNewest(
  store: ObjectStore,
  volume: VolumeRef,
): Promise<{ record: PublicationRecord | undefined; numbers: number[] }> {
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const numbers = await listNumbers(store, volume);
    const number = numbers.at(-1);
    if (number === undefined) return { record: undefined, numbers };
    const decode = (bytes: Buffer): PublicationRecord => decodePublication(bytes, { uid: volume.uid, number });
    const record = await getDecoded(store, publicationKey(volume, number), decode);
    if (record !== undefined) return { record, numbers };
  }
  throw contended(volume);
}

async function listNumbers(store: ObjectStore, volume: VolumeRef): Promise<number[]> {
  const numbers: number[] = [];
  for await (const { key } of listAll(store, publicationPrefix(volume))) {
    const parsed = parseKey(key);
    if (parsed?.kind === "publication") numbers.push(parsed.number);
  }
  return numbers;
}

function contended(volume: VolumeRef): OperationError {
  return new OperationError("busy", "publication of the volume changes all the time, retry", {
    context: { volumeId: volume.id },
  });
}
