/**
 * Checkpoints: the changed shards of the map as map objects, then a root that names all of them. A root covers the log
 * up to the newest segment that was wholly in the map when it began; pages may hold later ones too, which replay then
 * applies again to the same effect. Nothing that S3 does not hold is ever in a page.
 *
 * A checkpoint bounds how much a recovery has to read, and lets dirty shards be dropped from memory. Failing to write
 * one loses nothing: it is tried again after the next segments.
 */
import type { Clock } from "../base/clock.ts";
import { describe, isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import type { ObjectStore } from "../store/object-store.ts";
import type { BlockMap } from "./block-map.ts";
import { CheckpointShards, encodeCheckpoint } from "./format/checkpoint.ts";
import { encodeMapObjectHead } from "./format/map-object.ts";
import { encodeMapPage, mapPageSeed } from "./format/map-page.ts";
import type { Epoch, SegmentSeq } from "./identity.ts";
import type { Journal } from "./journal.ts";
import { checkpointKey, mapKey, type VolumeRef } from "./keys.ts";
import type { MapShard } from "./map-shard.ts";

/** Segments applied since the last checkpoint that make the next one due; recovery reads at most twice as many. */
export const CHECKPOINT_SEGMENTS = 128;
const MAX_MAP_OBJECT_BYTES = 8 * 1024 * 1024;

export interface CheckpointerOptions {
  store: ObjectStore;
  clock: Clock;
  random: Random;
  log: Log;
  volume: VolumeRef;
  epoch: Epoch;
  sizeBytes: number;
  journal: Journal;
  map: BlockMap;
  signal: AbortSignal;
  failed: (error: OperationError) => void;
}

/** What the map holds at a moment. */
export interface CheckpointPosition {
  sequence: SegmentSeq;
  journalEnd: number;
  everWritten: boolean;
}

export class Checkpointer {
  readonly #options: CheckpointerOptions;
  #nextCheckpoint = 1;
  #nextMapObject = 1;
  #running: Promise<void> | undefined;
  /** Covered by the last root written in this epoch; -1 before the first. */
  #coveredSequence: number;

  /** `replayedSegments` are owed already: what recovery had to apply on top of the last checkpoint. */
  constructor(options: CheckpointerOptions, replayedSegments: number) {
    this.#options = options;
    this.#coveredSequence = -replayedSegments;
  }

  /** Starts a checkpoint where one is due and none is under way. */
  maybeStart(position: CheckpointPosition): void {
    const owed = position.sequence - this.#coveredSequence;
    if (this.#running !== undefined || (owed < CHECKPOINT_SEGMENTS && !this.#options.map.needsCheckpoint())) return;
    void this.write(position);
  }

  /** Writes a checkpoint of everything applied, where anything is owed. Never rejects: failures are logged. */
  async write(position: CheckpointPosition): Promise<void> {
    await this.idle();
    if (position.sequence === this.#coveredSequence) return;
    const running = this.#write(position).finally(() => {
      if (this.#running === running) this.#running = undefined;
    });
    this.#running = running;
    await running;
  }

  /** Resolves when no checkpoint is under way. */
  async idle(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
  }

  async #write(position: CheckpointPosition): Promise<void> {
    const { log, map, signal } = this.#options;
    const started = this.#options.clock.monotonicMs();
    const dirty = map.takeDirty();
    try {
      const bytes = await this.#writePages(dirty);
      await this.#writeRoot(position);
      this.#coveredSequence = position.sequence;
      map.written(dirty, false);
      log.debug("wrote a checkpoint", {
        operation: "checkpoint",
        sequence: position.sequence,
        shards: dirty.length,
        bytes,
        durationMs: Math.round(this.#options.clock.monotonicMs() - started),
      });
    } catch (error) {
      map.written(dirty, true);
      if (signal.aborted) return;
      if (isKind(error, "fenced")) this.#options.failed(error);
      log.warn("could not write a checkpoint; it is tried again later", {
        operation: "checkpoint",
        error: describe(error),
      });
    }
  }

  /** Writes the pages of `shards`, several to an object, and enters them into the directory. Returns bytes written. */
  async #writePages(shards: readonly MapShard[]): Promise<number> {
    const { clock, map } = this.#options;
    let pages: { shard: number; page: Buffer }[] = [];
    let bytes = 0;
    let total = 0;
    for (const shard of shards) {
      if (shard.isEmpty()) {
        map.setPage(shard.index, undefined);
        continue;
      }
      const { sources, runs } = shard.toPage();
      const seed = mapPageSeed(this.#options.volume.uid, this.#options.epoch, this.#nextMapObject);
      const page = encodeMapPage(shard.index, sources, runs, seed);
      pages.push({ shard: shard.index, page });
      bytes += page.length;
      total += page.length;
      if (bytes >= MAX_MAP_OBJECT_BYTES) {
        await this.#writeMapObject(pages);
        pages = [];
        bytes = 0;
      }
      await clock.yield();
    }
    if (pages.length > 0) await this.#writeMapObject(pages);
    return total;
  }

  async #writeMapObject(pages: readonly { shard: number; page: Buffer }[]): Promise<void> {
    const { volume, epoch, random, map } = this.#options;
    const number = this.#nextMapObject++;
    const header = { uid: volume.uid, epoch, sequence: number, nonce: random.bytes(16) };
    const { head, entries } = encodeMapObjectHead(header, pages);
    await this.#put(mapKey(volume, epoch, number), [head, ...pages.map(({ page }) => page)]);
    for (const { shard, offset, length } of entries) map.setPage(shard, { lineage: 0, epoch, number, offset, length });
  }

  async #writeRoot(position: CheckpointPosition): Promise<void> {
    const { volume, epoch, random, clock, journal, sizeBytes, map } = this.#options;
    const number = this.#nextCheckpoint++;
    const { mapObjects, shards } = map.directory((count) => new CheckpointShards(count));
    const root = encodeCheckpoint(
      { uid: volume.uid, epoch, sequence: number, nonce: random.bytes(16) },
      {
        covers: { epoch, sequence: position.sequence },
        journalId: journal.journalId,
        journalEnd: position.journalEnd,
        sizeBytes,
        everWritten: position.everWritten,
        timeMs: clock.now(),
        lineage: [],
        mapObjects,
        shards,
      },
    );
    await this.#put(checkpointKey(volume, epoch, number), [root]);
  }

  /** Keys of this epoch are ours alone: a foreign object there means that we are not the owner any more. */
  async #put(key: string, body: Buffer[]): Promise<void> {
    const { store, signal } = this.#options;
    if ((await store.putIfAbsent(key, body, { signal })) === "created") return;
    throw new OperationError("fenced", "an object of this epoch was written by somebody else", { context: { key } });
  }
}
