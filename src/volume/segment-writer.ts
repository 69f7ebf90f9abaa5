/**
 * From the journal to S3: generations are sealed, uploaded as segments (several at a time), and applied to the map in
 * the order of the log.
 *
 *   open → sealed → uploading → durable → applied
 *
 * - A generation gets its sequence when it is sealed; S3 therefore always holds a prefix of history plus at most a few
 *   objects behind a gap, which nobody reads.
 * - It counts as durable for a flush when it and all before it are in S3.
 * - Its part of the journal is free when it and all before it are in the map.
 * - The store it is given waits out every error (store/patient.ts): S3 that is slow, away or refuses credentials never
 *   fails a write. Two things do: a foreign object under our key ("fenced"), and damage to journal or map ("corrupt").
 */
import type { Clock, Timer } from "../base/clock.ts";
import { asOperationError, OperationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { ObjectStore } from "../store/object-store.ts";
import type { BlockMap } from "./block-map.ts";
import type { DirtyExtents } from "./dirty-extents.ts";
import { segmentFrameSeed } from "./format/frame.ts";
import { encodeSegmentHead } from "./format/segment.ts";
import { Generation, type SegmentPlan } from "./generation.ts";
import { BLOCK_BYTES, type Epoch, type SegmentSeq } from "./identity.ts";
import type { Journal } from "./journal.ts";
import { segmentKey, type VolumeRef } from "./keys.ts";
import { applyExtents } from "./map-apply.ts";
import type { UploadBudget } from "./upload-budget.ts";

const MAX_UPLOADS = 8;

export interface SegmentWriterOptions {
  store: ObjectStore;
  clock: Clock;
  random: Random;
  volume: VolumeRef;
  epoch: Epoch;
  journal: Journal;
  map: BlockMap;
  overlay: DirtyExtents;
  budget: UploadBudget;
  uploadIntervalMs: number;
  signal: AbortSignal;
  /** A segment is in S3; its bytes may be kept by the cache until the promise resolves. */
  uploaded: (sequence: SegmentSeq, object: Buffer) => Promise<void> | undefined;
  /** Space was given back, or the map has moved on. */
  applied: () => void;
  failed: (error: OperationError) => void;
}

interface Waiter {
  sequence: number;
  resolve: () => void;
  reject: (error: OperationError) => void;
}

export class SegmentWriter {
  readonly #options: SegmentWriterOptions;
  #active: Generation | undefined;
  /** Sealed and not yet applied, in order. */
  #generations: Generation[] = [];
  /** How many of #generations have been given to an upload. */
  #started = 0;
  #uploading = 0;
  #sealedSequence = 0;
  #durableSequence = 0;
  /** The newest log object that the map holds, and the journal's record that belongs to it. */
  appliedSequence = 0;
  appliedJournalEnd: number;
  #waiters: Waiter[] = [];
  readonly #uploads = new Set<Promise<void>>();
  #sealWanted = false;
  #waitsForBudget = false;
  #isApplying = false;
  #applying: Promise<void> | undefined;
  #timer: Timer | undefined;
  #dirtyBlocks = 0;
  #releasedBytes = 0;
  #failure: OperationError | undefined;

  constructor(options: SegmentWriterOptions, journalEnd: number) {
    this.#options = options;
    this.appliedJournalEnd = journalEnd;
  }

  /** Bytes acknowledged that S3 does not hold, overwritten ones included. */
  get dirtyBytes(): number {
    return this.#dirtyBlocks * BLOCK_BYTES;
  }

  /** Journal bytes given back since the volume was opened: the speed at which S3 drains it. */
  get releasedBytes(): number {
    return this.#releasedBytes;
  }

  /** Age of the oldest write that S3 does not hold, in milliseconds; 0 where there is none. */
  behindMs(): number {
    const oldest = this.#generations.find((generation) => !generation.durable) ?? this.#active;
    return oldest === undefined ? 0 : Math.max(0, this.#options.clock.monotonicMs() - oldest.openedMs);
  }

  /** Takes a journaled write: what Journal.append returned, the position behind its record, and its sequence. */
  add(lba: number, blocks: number, value: number, endPosition: number, journalSequence: number): void {
    const { clock, overlay, uploadIntervalMs } = this.#options;
    const dataBlocks = value > 0 ? blocks : 0;
    if (this.#active?.isFullFor(dataBlocks) === true) this.seal();
    if (this.#active === undefined) {
      this.#active = new Generation(clock.monotonicMs());
      this.#timer = clock.after(uploadIntervalMs, () => this.seal());
    }
    this.#active.add(lba, blocks, value);
    this.#active.endPosition = endPosition;
    this.#active.journalEnd = journalSequence;
    this.#dirtyBlocks += dataBlocks;
    overlay.insert(lba, blocks, value);
  }

  /** Ends the open generation, where there is one, and sends it on its way. */
  seal(): void {
    if (this.#failure !== undefined) return;
    this.#timer?.cancel();
    this.#sealWanted = false;
    const generation = this.#active;
    if (generation === undefined) return;
    this.#active = undefined;
    generation.sequence = this.#sealedSequence += 1;
    this.#generations.push(generation);
    this.#pump();
  }

  /** Resolves when everything added so far is in S3; undefined where it is already. */
  flush(): Promise<void> | undefined {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    let sequence = this.#sealedSequence;
    if (this.#active !== undefined) {
      sequence += 1;
      // While all uploads are busy, flushes gather in one generation instead of queueing one each.
      if (this.#uploading < MAX_UPLOADS && this.#started === this.#generations.length) this.seal();
      else this.#sealWanted = true;
    }
    if (sequence <= this.#durableSequence) return undefined;
    return new Promise((resolve, reject) => this.#waiters.push({ sequence, resolve, reject }));
  }

  /** Resolves when no upload is under way and everything that is in S3 is in the map too. */
  async settled(): Promise<void> {
    while (this.#uploads.size > 0) await Promise.all(this.#uploads);
    while (this.#isApplying) await this.#applying;
  }

  /** Ends for good: whoever waits is told `error`. */
  fail(error: OperationError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#timer?.cancel();
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.reject(error);
  }

  #pump(): void {
    while (this.#failure === undefined && this.#uploading < MAX_UPLOADS && !this.#waitsForBudget) {
      if (this.#started === this.#generations.length) {
        if (!this.#sealWanted) return;
        this.seal();
        continue;
      }
      const generation = this.#generations[this.#started];
      const plan = generation.plan();
      const buffer = this.#options.budget.acquire(plan.headBytes + plan.dataBytes, () => {
        this.#waitsForBudget = false;
        this.#pump();
      });
      if (buffer === undefined) {
        this.#waitsForBudget = true;
        return;
      }
      this.#started += 1;
      this.#uploading += 1;
      const upload: Promise<void> = this.#upload(generation, plan, buffer).finally(() => this.#uploads.delete(upload));
      this.#uploads.add(upload);
    }
  }

  /** Never rejects: what cannot be retried fails the volume. */
  async #upload(generation: Generation, plan: SegmentPlan, buffer: Buffer): Promise<void> {
    try {
      const object = await this.#build(generation, plan, buffer);
      await this.#put(generation, object);
      generation.durable = true;
      this.#uploading -= 1;
      this.#advance();
      await this.#options.uploaded(generation.sequence as SegmentSeq, object);
    } catch (error) {
      this.#uploading -= 1;
      if (!this.#options.signal.aborted) {
        this.#options.failed(asOperationError(error, "unavailable", "cannot upload a segment"));
      }
    } finally {
      this.#options.budget.release(buffer);
    }
  }

  async #build(generation: Generation, plan: SegmentPlan, buffer: Buffer): Promise<Buffer> {
    const { volume, epoch, journal, clock, random } = this.#options;
    const { sequence } = generation;
    await plan.copyFrames(journal, clock, buffer, segmentFrameSeed(volume.uid, epoch, sequence));
    const head = encodeSegmentHead(
      { uid: volume.uid, epoch, sequence, nonce: random.bytes(16) },
      {
        type: "data",
        timeMs: clock.now(),
        journalId: journal.journalId,
        journalEnd: generation.journalEnd,
        everWritten: false,
        extents: plan.extents,
        dataLength: plan.dataBytes,
      },
    );
    head.copy(buffer);
    generation.dropWrites();
    return buffer.subarray(0, plan.headBytes + plan.dataBytes);
  }

  async #put(generation: Generation, object: Buffer): Promise<void> {
    const { store, volume, epoch, signal } = this.#options;
    const { sequence } = generation;
    const key = segmentKey(volume.uid, epoch, sequence as SegmentSeq);
    if ((await store.putIfAbsent(key, [object], { signal })) === "created") return;
    throw new OperationError("fenced", "another node has taken the volume over: this one must not write any more", {
      context: { volumeId: volume.id, epoch, sequence },
    });
  }

  /** An upload has ended well: tells flushes that were waiting, and lets the map follow. */
  #advance(): void {
    for (const generation of this.#generations) {
      if (generation.sequence <= this.#durableSequence) continue;
      if (!generation.durable) break;
      this.#durableSequence = generation.sequence;
      this.#dirtyBlocks -= generation.dataBlocks;
    }
    const ready = this.#waiters.filter((waiter) => waiter.sequence <= this.#durableSequence);
    if (ready.length > 0) {
      this.#waiters = this.#waiters.filter((waiter) => waiter.sequence > this.#durableSequence);
      for (const waiter of ready) waiter.resolve();
    }
    if (!this.#isApplying) this.#applying = this.#apply();
    this.#pump();
  }

  async #apply(): Promise<void> {
    const { map, clock, epoch, overlay, journal, signal } = this.#options;
    this.#isApplying = true;
    try {
      for (;;) {
        const generation = this.#generations[0];
        if (generation === undefined || generation.sequence > this.#durableSequence || this.#failure !== undefined)
          return;
        const extents = generation.extents!;
        const { sequence } = generation;
        await applyExtents(map, clock, { epoch, sequence }, extents);
        for (let index = 0; index < extents.count; index += 1) {
          overlay.removeBefore(extents.lba[index], extents.blockCount[index], generation.endPosition);
        }
        this.#generations.shift();
        this.#started -= 1;
        this.appliedSequence = sequence;
        this.appliedJournalEnd = generation.journalEnd;
        const used = journal.usedBytes();
        journal.release(generation.endPosition);
        this.#releasedBytes += used - journal.usedBytes();
        this.#options.applied();
      }
    } catch (error) {
      if (!signal.aborted) this.#options.failed(asOperationError(error, "unavailable", "cannot read the map"));
    } finally {
      this.#isApplying = false;
    }
  }
}
