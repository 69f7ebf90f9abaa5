/**
 * The engine of one thread: opens volumes and holds what they share, the block cache and the budgets of memory. This
 * is the one place that puts the parts of a volume together.
 *
 * Memory it may take, all volumes together: mapBudgetBytes + uploadBudgetBytes + readBudgetBytes + the index and write
 * buffers of the cache (at most 144 MiB) + about 0.8 MiB and 28 to 56 bytes a dirty extent per volume.
 */
import type { Clock } from "../base/clock.ts";
import type { Disk } from "../base/disk.ts";
import { isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import type { ObjectStore } from "../store/object-store.ts";
import { PatientStore } from "../store/patient.ts";
import { Admission } from "./admission.ts";
import { BlockCache } from "./block-cache.ts";
import { BlockMap, MapBudget, type PageLocation } from "./block-map.ts";
import { Checkpointer } from "./checkpointer.ts";
import { DirtyExtents } from "./dirty-extents.ts";
import type { VolumeMeta } from "./format/control-records.ts";
import { corrupt } from "./format/fields.ts";
import { RAW_FRAME_BYTES } from "./format/frame.ts";
import { EXTENT_DATA, type JournalRecord } from "./format/journal-record.ts";
import { decodeMapPage, mapPageSeed } from "./format/map-page.ts";
import { MAX_SEGMENT_BYTES } from "./generation.ts";
import { BLOCK_BYTES, type Epoch, type VolumeId } from "./identity.ts";
import { HotBlocks } from "./hot-blocks.ts";
import { Journal } from "./journal.ts";
import { mapKey, type VolumeRef } from "./keys.ts";
import { MapShard } from "./map-shard.ts";
import { type NamedVolume, type NameView, viewAgain, viewName } from "./names.ts";
import { ReadBudget } from "./read-budget.ts";
import { ReadPath } from "./read-path.ts";
import { recover, type Recovered } from "./recovery.ts";
import { SegmentReader, type StoredObject } from "./segment-reader.ts";
import { SegmentWriter } from "./segment-writer.ts";
import type { VolumeOpenOptions } from "./status.ts";
import { storedSegment } from "./stored-segment.ts";
import { UploadBudget } from "./upload-budget.ts";
import { Volume } from "./volume.ts";

export interface EngineOptions {
  clock: Clock;
  random: Random;
  log: Log;
  nodeId: string;
  /** Where the block cache lives; undefined: no cache. */
  cacheDisk: Disk | undefined;
  cacheSizeBytes: number;
  /** Memory for loaded parts of the maps. */
  mapBudgetBytes: number;
  /** Memory for segments on their way to S3 and, while they leave it, for blocks that are read often. */
  uploadBudgetBytes: number;
  /** Makes the buffers of 32 MiB, with anything in them; default Buffer.allocUnsafeSlow. */
  allocateLarge?: (bytes: number) => Buffer;
  /** Memory for what is on its way from S3. */
  readBudgetBytes: number;
  /** Disk space of one volume's journal. */
  journalSizeBytes: number;
  /** Size of one journal file; default 64 MiB. */
  journalFileBytes?: number;
  /** How long a write waits at most before it is sent to S3 without a flush. */
  uploadIntervalMs: number;
}

export interface EngineOpenOptions extends VolumeOpenOptions {
  store: ObjectStore;
  /** The volume's own directory. */
  journalDisk: Disk;
  /** Number of the publication that the ownership rests on; 0 = none. */
  publication: number;
  /**
   * A client waits that the former process had answered (the kernel, on this machine, running ever since): what it was
   * told must be there, flushed or not, else "corrupt". Default: none does.
   */
  clientWaits?: boolean;
  /** Asked once the epoch is claimed and before anybody is fenced: throws where the caller has lost its right meanwhile. */
  confirm?: () => Promise<void>;
}

export interface EngineStats {
  /** Reads answered from memory, by the cache's file, and by neither. */
  memoryHits: number;
  cacheHits: number;
  cacheMisses: number;
  cacheBytes: number;
  mapBytes: number;
  uploadBytes: number;
  openVolumes: number;
}

/** A journal record that S3 does not hold: what the writer is given again after a recovery. */
interface ReplayedWrite {
  lba: number;
  blocks: number;
  value: number;
  endPosition: number;
  sequence: number;
}

export class Engine {
  readonly #options: EngineOptions;
  readonly #cache: BlockCache;
  readonly #mapBudget: MapBudget;
  readonly #uploadBudget: UploadBudget;
  readonly #hot: HotBlocks;
  readonly #readBudget: ReadBudget;
  readonly #open = new Set<VolumeId>();

  static async start(options: EngineOptions): Promise<Engine> {
    const { clock, log, cacheDisk, cacheSizeBytes } = options;
    const cache = await BlockCache.open({ disk: cacheDisk, capacityBytes: cacheSizeBytes, clock, log });
    return new Engine(options, cache);
  }

  private constructor(options: EngineOptions, cache: BlockCache) {
    this.#options = options;
    this.#cache = cache;
    this.#mapBudget = new MapBudget(options.mapBudgetBytes);
    this.#uploadBudget = new UploadBudget(options.uploadBudgetBytes, MAX_SEGMENT_BYTES, options.allocateLarge);
    this.#hot = new HotBlocks(this.#uploadBudget);
    this.#readBudget = new ReadBudget(options.readBudgetBytes);
  }

  /**
   * Becomes the owner of the volume and opens it. Errors: "not-found"; "busy" where another node takes it at the same
   * moment, or this engine has it open; "fenced" in mode "resume" where another node has taken it or it was deleted;
   * "exhausted" where the journal's disk is full; "corrupt"; "unavailable".
   */
  async open(volumeId: VolumeId, options: EngineOpenOptions): Promise<Volume> {
    if (this.#open.has(volumeId)) {
      throw new OperationError("busy", "the volume is open in this process already", { context: { volumeId } });
    }
    this.#open.add(volumeId);
    try {
      return await this.#openNew(volumeId, options);
    } catch (error) {
      this.#open.delete(volumeId);
      throw error;
    }
  }

  stats(): EngineStats {
    const cache = this.#cache.stats();
    return {
      memoryHits: this.#hot.hits,
      cacheHits: cache.hits,
      cacheMisses: cache.misses,
      cacheBytes: cache.parts * 65_536,
      mapBytes: this.#mapBudget.usedBytes,
      uploadBytes: this.#uploadBudget.usedBytes,
      openVolumes: this.#open.size,
    };
  }

  /** Saves the cache's index. Volumes must be closed before. */
  async close(): Promise<void> {
    await this.#cache.close();
  }

  async #openNew(volumeId: VolumeId, options: EngineOpenOptions): Promise<Volume> {
    const { clock, random, nodeId, journalSizeBytes, journalFileBytes } = this.#options;
    const { store, publication, clientWaits = false } = options;
    const log = this.#options.log.child({ volumeId });
    const startedMs = clock.monotonicMs();
    const named = mustExist(await viewName(store, volumeId), volumeId, options);
    const { meta } = named;
    const exists = async (whenDeleted?: () => Promise<void>): Promise<void> => {
      const view = await viewAgain(store, named);
      if (view.state === "being deleted" || view.state === "given back") await whenDeleted?.();
      mustExist(view, volumeId, options);
    };
    const abort = new AbortController();
    const { signal } = abort;
    const files = { disk: options.journalDisk, limitBytes: journalSizeBytes, fileBytes: journalFileBytes };
    const journal = await Journal.open({ ...files, uid: meta.uid, random, log });
    try {
      const patient = new PatientStore(store, { clock, log });
      const shared = { cache: this.#cache, budget: this.#readBudget, clock, log, signal };
      const reader = new SegmentReader({ store: patient, ...shared });
      const map = new BlockMap(meta.sizeBytes, this.#mapBudget, (shard, page) => loadPage(reader, meta, shard, page));
      const replayed: ReplayedWrite[] = [];
      const confirm = async (): Promise<void> => {
        await exists();
        await options.confirm?.();
      };
      const place = { store, clock, random, log, journal, map, nodeId, signal };
      const environment = { ...place, publication, clientWaits, confirm, exists };
      const recovered = await recover(environment, meta, options.mode, (record, position) => {
        replay(record, position, meta.sizeBytes / BLOCK_BYTES, replayed);
      });
      patient.serving();
      const parts = { meta, options, store: patient, log, journal, map, reader, recovered, replayed, abort };
      const volume = this.#assemble(parts);
      log.info("opened the volume", {
        operation: "open",
        epoch: recovered.epoch,
        replayedSegments: recovered.replayedSegments,
        replayedWrites: replayed.length,
        durability: volume.status().durability,
        durationMs: Math.round(clock.monotonicMs() - startedMs),
      });
      return volume;
    } catch (error) {
      abort.abort(error);
      await journal.close();
      // A volume that is deleted while it is opened looks like a damaged one.
      if (isKind(error, "corrupt")) await exists();
      throw error;
    }
  }

  #assemble(found: {
    meta: VolumeMeta;
    options: EngineOpenOptions;
    store: ObjectStore;
    log: Log;
    journal: Journal;
    map: BlockMap;
    reader: SegmentReader;
    recovered: Recovered;
    replayed: readonly ReplayedWrite[];
    abort: AbortController;
  }): Volume {
    const { meta, options, store, log, journal, map, reader, recovered, replayed, abort } = found;
    const { clock, random, uploadIntervalMs } = this.#options;
    const { epoch, everWritten, journalEnd, replayedSegments } = recovered;
    const ref: VolumeRef = { id: meta.id, uid: meta.uid };
    const overlay = new DirtyExtents();
    const shared = { store, clock, random, log, volume: ref, epoch, journal, map, signal: abort.signal };
    const failed = (error: OperationError): void => volume.fail(error);
    const writer: SegmentWriter = new SegmentWriter(
      {
        ...shared,
        overlay,
        budget: this.#uploadBudget,
        uploadIntervalMs,
        uploaded: (sequence, object) =>
          reader.admit(storedSegment(meta.uid, epoch, sequence), object, () => this.#uploadBudget.contended),
        applied: () => volume.mapMoved(),
        failed,
      },
      journalEnd,
    );
    const admission = new Admission({
      clock,
      log,
      journal,
      overlay,
      releasedBytes: () => writer.releasedBytes,
      push: () => writer.seal(),
    });
    const volume: Volume = new Volume({
      volumeId: meta.id,
      epoch,
      sizeBytes: meta.sizeBytes,
      blockSizeBytes: meta.blockSizeBytes,
      durability: options.durability ?? meta.durability,
      readOnly: options.readOnly,
      everWritten,
      log,
      journal,
      overlay,
      map,
      writer,
      checkpointer: new Checkpointer({ ...shared, sizeBytes: meta.sizeBytes, failed }, replayedSegments),
      readPath: new ReadPath({
        uid: meta.uid,
        overlay,
        journal,
        map,
        reader,
        hot: this.#hot,
        sizeBytes: meta.sizeBytes,
      }),
      admission,
      abort,
      released: () => this.#open.delete(meta.id),
    });
    for (const write of replayed) writer.add(write.lba, write.blocks, write.value, write.endPosition, write.sequence);
    return volume;
  }
}

/**
 * The volume that has the name, else "not-found". A restarted server (mode "resume") had it open: where the store says
 * for certain that it was deleted, that is "fenced"; "not-found" then says that the store shows nothing of it, which a
 * store that answers wrongly for a while does as well.
 */
function mustExist(view: NameView, volumeId: VolumeId, { store, mode }: EngineOpenOptions): NamedVolume {
  if (view.state === "in force") return view.named;
  const context = { volumeId, store: store.location };
  if (view.state === "nothing") {
    throw new OperationError("not-found", "no such volume in this store: check the store's URL and endpoint", {
      context,
    });
  }
  const kind = mode === "resume" ? "fenced" : "not-found";
  throw new OperationError(kind, `the volume was deleted: its name is ${view.state}`, { context });
}

/** Adds the writes of a journal record to `writes`, as Journal.append would have returned them. */
function replay(record: JournalRecord, framePosition: number, volumeBlocks: number, writes: ReplayedWrite[]): void {
  const recordPosition = framePosition - record.headBytes;
  const endPosition = recordPosition + record.lengthBytes;
  let position = framePosition;
  for (const { lba, blockCount: blocks, kind } of record.extents) {
    if (lba + blocks > volumeBlocks) throw corrupt("the local journal holds blocks outside the volume", { lba });
    const value = kind === EXTENT_DATA ? position : -recordPosition;
    writes.push({ lba, blocks, value, endPosition, sequence: record.sequence });
    if (kind === EXTENT_DATA) position += blocks * RAW_FRAME_BYTES;
  }
}

function isMapPage(page: Buffer, shard: number, seed: number): boolean {
  try {
    decodeMapPage(page, shard, seed);
    return true;
  } catch {
    return false;
  }
}

/** Reads a page by way of the cache; where its checksum does not hold, from S3 twice more. */
async function loadPage(
  reader: SegmentReader,
  meta: VolumeMeta,
  shard: number,
  location: PageLocation,
): Promise<MapShard> {
  const { epoch, number, offset, length } = location;
  const key = mapKey({ id: meta.id, uid: meta.uid }, epoch as Epoch, number);
  const object: StoredObject = { uid: meta.uid, epoch, sequence: number, kind: "map", key };
  const read = reader.read(object, offset, length);
  const bytes = read instanceof Promise ? await read : read;
  const seed = mapPageSeed(meta.uid, epoch, number);
  try {
    return MapShard.fromPage(shard, decodeMapPage(bytes, shard, seed));
  } catch {
    const isRight = (page: Buffer): boolean => isMapPage(page, shard, seed);
    return MapShard.fromPage(shard, decodeMapPage(await reader.refetch(object, offset, length, isRight), shard, seed));
  }
}
