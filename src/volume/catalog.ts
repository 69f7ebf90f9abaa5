/**
 * The control plane of one store: which volumes exist, who may own them, how they end. Used by the CSI controller and
 * the command line. It keeps nothing in memory: every answer is read from the store, so any number of catalogs may work
 * on one store at a time, and a call that died is repeated.
 *
 * Deletion: marked deleted → not published → owners fenced → log, then all under the uid but its metadata removed → the
 * name given back (names.ts) → what is left under the uid. Each step may be repeated; none is undone. Once marked, a
 * volume can be neither opened, published nor made again until it is gone.
 */
import type { Clock } from "../base/clock.ts";
import { isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import type { ObjectStore } from "../store/object-store.ts";
import { mapConcurrently } from "./concurrency.ts";
import { deleteRemains, deleteVolumeObjects } from "./deletion.ts";
import type { LocationRecord, VolumeMeta } from "./format/control-records.ts";
import {
  BLOCK_BYTES,
  type Durability,
  isVolumeId,
  MAX_VOLUME_BYTES,
  MIN_VOLUME_BYTES,
  mustVolumeId,
  type VolumeId,
  type VolumeUid,
} from "./identity.ts";
import { isVolumeUid, publicationKey, volumePrefix, type VolumeRef, VOLUMES_PREFIX } from "./keys.ts";
import { getLocation, listLocations, registerLocation } from "./locations.ts";
import { appendMeta, bindName, getMeta, type NamedVolume, releaseName, settleName, takeNameless } from "./names.ts";
import { getPublication, type Publication, publish, unpublish } from "./publication.ts";

const UID_BYTES = 16;
const MAX_ROUNDS = 64;
const READ_CONCURRENCY = 16;
const MAX_LIST_LIMIT = 1000;
/** Requests that create a volume, each under a uid of its own, where none has an answer. */
const MAX_BINDINGS = 5;
const FIRST_PAUSE_MS = 100;
const MAX_NAME_LENGTH = 1024;

export interface CatalogOptions {
  store: ObjectStore;
  clock: Clock;
  random: Random;
  log: Log;
  /**
   * Makes sure that no owner, known or not, gets one more write acknowledged: claims a new epoch and closes all older
   * ones. Must be repeatable, also after some of the volume's objects are gone.
   */
  fenceForDeletion(volume: VolumeRef): Promise<void>;
}

export interface VolumeSpec {
  id: VolumeId;
  name: string;
  /** A multiple of 4096, from MIN_VOLUME_BYTES to MAX_VOLUME_BYTES. */
  sizeBytes: number;
  blockSizeBytes: number;
  durability: Durability;
  fsType?: string | undefined;
  parameters: Readonly<Record<string, string>>;
}

export interface VolumePage {
  volumes: VolumeMeta[];
  /** Pass as `after` for the next page; undefined on the last one. */
  next: VolumeId | undefined;
}

export class Catalog {
  readonly #options: CatalogOptions;
  readonly #store: ObjectStore;

  constructor(options: CatalogOptions) {
    this.#options = options;
    this.#store = options.store;
  }

  /**
   * Makes a volume, or answers the existing one where it is the same. "invalid" for a size or block size that cannot
   * be, "conflict" naming the first field that differs, "busy" while a volume of this id is being deleted.
   */
  async create(spec: VolumeSpec): Promise<VolumeMeta> {
    validateSpec(spec);
    const { id } = spec;
    let own: VolumeUid | undefined;
    let unanswered = 0;
    for (let round = 0; round < MAX_ROUNDS; round += 1) {
      const { found, nextNumber } = await settleName(this.#options, id, own);
      const fresh = this.#newMeta(spec, nextNumber);
      if (found !== undefined) {
        const { meta } = found;
        if (meta.deleted) {
          throw new OperationError("busy", "volume of this id is being deleted, retry", { context: { volumeId: id } });
        }
        mustBeSame(meta, fresh);
        if (meta.uid === own)
          this.#options.log.info("volume created", { volumeId: id, uid: own, binding: meta.number });
        return meta;
      }
      try {
        if ((await bindName(this.#options, fresh)) === "created") own = fresh.uid;
      } catch (error) {
        unanswered += 1;
        if (!isKind(error, "unavailable") || unanswered === MAX_BINDINGS) throw error;
        await this.#options.clock.sleep(this.#options.random.fraction() * FIRST_PAUSE_MS * 2 ** unanswered);
      }
    }
    throw contended(id);
  }

  /** Undefined where there is none, or it is being deleted. */
  async get(id: VolumeId): Promise<VolumeMeta | undefined> {
    const meta = await getMeta(this.#store, id);
    return meta?.deleted === true ? undefined : meta;
  }

  /** Like get, but "not-found". */
  async must(id: VolumeId): Promise<VolumeMeta> {
    const meta = await this.get(id);
    if (meta === undefined) throw new OperationError("not-found", "no such volume", { context: { volumeId: id } });
    return meta;
  }

  /** At most `limit` (1 to 1000) volumes in a fixed order, those that follow `after`, which need not exist any more. */
  async list(options: { after?: VolumeId; limit?: number } = {}): Promise<VolumePage> {
    const limit = Math.min(Math.max(options.limit ?? MAX_LIST_LIMIT, 1), MAX_LIST_LIMIT);
    const volumes: VolumeMeta[] = [];
    let last: string | undefined = options.after;
    for (;;) {
      const page = await this.#store.list(VOLUMES_PREFIX, {
        delimiter: "/",
        limit: limit - volumes.length,
        ...(last === undefined ? {} : { after: endOf(last) }),
      });
      const names = page.prefixes.map((prefix) => prefix.slice(VOLUMES_PREFIX.length, -1));
      const metas = await mapConcurrently(names.filter(isVolumeId), READ_CONCURRENCY, (id) => this.get(id));
      volumes.push(...metas.filter((meta) => meta !== undefined));
      last = names.at(-1) ?? last;
      if (page.next === undefined) return { volumes, next: undefined };
      if (volumes.length === limit) return { volumes, next: volumes.at(-1)?.id };
    }
  }

  /**
   * Gives a node the right to own the volume; the same again answers the same number. "not-found", "in-use" naming the
   * other node, "conflict" where this node has it with other access.
   */
  async publish(id: VolumeId, nodeId: string, readOnly: boolean): Promise<Publication> {
    if (nodeId === "") throw new OperationError("invalid", "node id must not be empty", { context: { volumeId: id } });
    const volume = await this.must(id);
    const { publication, created } = await publish(this.#options, volume, { nodeId, readOnly });
    const now = await getMeta(this.#store, id);
    if (now?.uid === volume.uid && !now.deleted) return publication;
    // Deleted rather than released: the deletion may have passed this prefix already, and nothing may stay behind.
    if (created) await this.#store.delete([publicationKey(volume, publication.number)]);
    throw new OperationError("not-found", "volume was deleted meanwhile", { context: { volumeId: id } });
  }

  /** Takes the right away from `nodeId`, or from whoever has it (empty). No error where nobody has, or no volume is. */
  async unpublish(id: VolumeId, nodeId: string): Promise<void> {
    const meta = await getMeta(this.#store, id);
    if (meta !== undefined) await unpublish(this.#options, meta, nodeId);
  }

  /** Undefined where the volume is unknown or not published. */
  async getPublication(id: VolumeId): Promise<Publication | undefined> {
    const meta = await getMeta(this.#store, id);
    return meta === undefined ? undefined : getPublication(this.#store, meta);
  }

  /**
   * Deletes a volume and all it has in the store; an unknown one is no error. "in-use" naming the node while it is
   * published. After any failure call it again: it goes on where it was.
   */
  async delete(id: VolumeId): Promise<void> {
    // Asked first: what is then under a uid that the name's records do not name is nobody's for ever.
    const uids = await this.#listUids(id);
    let target: VolumeUid | undefined;
    for (let round = 0; round < MAX_ROUNDS; round += 1) {
      const { found } = await settleName(this.#options, id);
      // Where somebody else has finished and a new volume has the name, it is not the one that this call was for.
      target ??= found?.meta.uid;
      if (found === undefined || found.meta.uid !== target) break;
      await this.#mustBeUnpublished(found.meta);
      if (found.meta.deleted) {
        await this.#finishDeletion(found);
        break;
      }
      if (round === MAX_ROUNDS - 1) throw contended(id);
      // Published in the meantime? Read again in the next round: publish() reads the metadata after its own record.
      await appendMeta(this.#options, found, true);
    }
    await deleteRemains(this.#options, await takeNameless(this.#store, id, uids));
  }

  registerLocation(location: LocationRecord): Promise<string> {
    return registerLocation(this.#options, location);
  }

  getLocation(hash: string): Promise<LocationRecord | undefined> {
    return getLocation(this.#store, hash);
  }

  listLocations(): Promise<Map<string, LocationRecord>> {
    return listLocations(this.#store);
  }

  async #mustBeUnpublished(meta: VolumeMeta): Promise<void> {
    const publication = await getPublication(this.#store, meta);
    if (publication === undefined) return;
    throw new OperationError("in-use", "volume is published, unpublish it before it is deleted", {
      context: { volumeId: meta.id, nodeId: publication.nodeId },
    });
  }

  async #finishDeletion({ meta, binding }: NamedVolume): Promise<void> {
    const volume: VolumeRef = { id: meta.id, uid: meta.uid };
    await this.#options.fenceForDeletion(volume);
    const objects = await deleteVolumeObjects(this.#options, volume);
    await releaseName(this.#options, volume, binding);
    this.#options.log.info("volume deleted", { volumeId: meta.id, uid: meta.uid, objects });
  }

  async #listUids(id: VolumeId): Promise<VolumeUid[]> {
    const prefix = volumePrefix(id);
    const uids: VolumeUid[] = [];
    let after: string | undefined;
    do {
      const page = await this.#store.list(prefix, { delimiter: "/", ...(after === undefined ? {} : { after }) });
      uids.push(...page.prefixes.map((name) => name.slice(prefix.length, -1)).filter(isVolumeUid));
      after = page.next;
    } while (after !== undefined);
    return uids;
  }

  #newMeta(spec: VolumeSpec, number: number): VolumeMeta {
    const { id, name, sizeBytes, durability, fsType, parameters } = spec;
    return {
      id,
      uid: this.#options.random.bytes(UID_BYTES).toString("hex") as VolumeUid,
      number,
      name,
      sizeBytes,
      blockSizeBytes: spec.blockSizeBytes === 512 ? 512 : 4096,
      durability,
      codec: "none",
      encryption: null,
      lineage: [],
      createdMs: this.#options.clock.now(),
      ...(fsType === undefined ? {} : { fsType }),
      parameters: { ...parameters },
      deleted: false,
    };
  }
}

/** Behind every key of a volume and before those of the next: "0" follows "/". */
function endOf(name: string): string {
  return `${VOLUMES_PREFIX}${name}0`;
}

function validateSpec(spec: VolumeSpec): void {
  mustVolumeId(spec.id);
  const { sizeBytes, blockSizeBytes, name } = spec;
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < MIN_VOLUME_BYTES || sizeBytes > MAX_VOLUME_BYTES) {
    throw new OperationError(
      "invalid",
      "volume size must be between 1 MiB and 64 TiB: ask for a size in these limits",
      {
        context: { sizeBytes, minBytes: MIN_VOLUME_BYTES, maxBytes: MAX_VOLUME_BYTES },
      },
    );
  }
  if (sizeBytes % BLOCK_BYTES !== 0) {
    throw new OperationError("invalid", "volume size must be a multiple of 4096 bytes: round it up", {
      context: { sizeBytes, roundedBytes: Math.ceil(sizeBytes / BLOCK_BYTES) * BLOCK_BYTES },
    });
  }
  if (blockSizeBytes !== 512 && blockSizeBytes !== 4096) {
    throw new OperationError("invalid", "block size must be 512 or 4096 bytes", { context: { blockSizeBytes } });
  }
  if (spec.durability !== "s3" && spec.durability !== "local") {
    throw new OperationError("invalid", "durability must be s3 or local", { context: { durability: spec.durability } });
  }
  if (name.length > MAX_NAME_LENGTH) {
    throw new OperationError("invalid", "volume name is too long", { context: { maxLength: MAX_NAME_LENGTH } });
  }
}

function mustBeSame(existing: VolumeMeta, wanted: VolumeMeta): void {
  for (const field of ["name", "sizeBytes", "blockSizeBytes", "durability", "fsType"] as const) {
    if (existing[field] === wanted[field]) continue;
    throw new OperationError("conflict", `volume exists with another ${field}: delete it or use another name`, {
      context: { volumeId: existing.id, existing: existing[field] ?? "none", wanted: wanted[field] ?? "none" },
    });
  }
  const keys = new Set([...Object.keys(existing.parameters), ...Object.keys(wanted.parameters)]);
  for (const key of keys) {
    if (existing.parameters[key] === wanted.parameters[key]) continue;
    throw new OperationError("conflict", "volume exists with another parameter: delete it or use another name", {
      context: { volumeId: existing.id, parameter: key },
    });
  }
}

function contended(id: VolumeId): OperationError {
  return new OperationError("busy", "volume changes all the time, retry", { context: { volumeId: id } });
}
