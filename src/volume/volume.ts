/**
 * A volume that this process owns: the engine's block device.
 *
 * A write goes to the journal, then to the overlay, and is acknowledged. A flush makes it durable: in S3 (durability
 * "s3") or on the node's disk ("local"). Behind that, SegmentWriter carries generations of writes to S3 and into the
 * map. A read asks the overlay, then the map, then cache and S3 (read-path.ts).
 *
 *   open ──── fenced, corrupt ───▶ failed        every request answers the stored error, until close
 *    └──── close, leave ────▶ closed
 *
 * It must never acknowledge a flush that a successor would not find, write to S3 after it was fenced, or fail a
 * request because S3 is slow.
 */
import { assert } from "../base/assert.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { BlockDevice, MaybePromise } from "../block/device.ts";
import { Admission } from "./admission.ts";
import type { BlockMap } from "./block-map.ts";
import { Checkpointer, type CheckpointPosition } from "./checkpointer.ts";
import type { DirtyExtents } from "./dirty-extents.ts";
import { SHARD_BLOCKS } from "./format/map-page.ts";
import { BLOCK_BYTES, type Durability, type Epoch, type SegmentSeq, type VolumeId } from "./identity.ts";
import type { Journal } from "./journal.ts";
import { ReadPath } from "./read-path.ts";
import type { SegmentWriter } from "./segment-writer.ts";
import type { VolumeState, VolumeStatus } from "./status.ts";

/** Blocks of one journal record at most; a larger write becomes several records. */
export const MAX_RECORD_BLOCKS = 2048;

export interface VolumeParts {
  volumeId: VolumeId;
  epoch: Epoch;
  sizeBytes: number;
  blockSizeBytes: number;
  durability: Durability;
  readOnly: boolean;
  /** As S3 knows it, and with what only the local journal holds. */
  everWritten: { stored: boolean; journaled: boolean };
  log: Log;
  journal: Journal;
  overlay: DirtyExtents;
  map: BlockMap;
  writer: SegmentWriter;
  checkpointer: Checkpointer;
  readPath: ReadPath;
  admission: Admission;
  /** Aborts what is under way towards S3. */
  abort: AbortController;
  /** Called once the volume holds nothing any more. */
  released: () => void;
}

export class Volume implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly epoch: Epoch;
  readonly #parts: VolumeParts;
  readonly #journal: Journal;
  readonly #writer: SegmentWriter;
  readonly #admission: Admission;
  readonly #readPath: ReadPath;
  /** Between beginBatch and commitBatch: writes need not be safe yet. */
  #batching = false;
  #everWritten: boolean;
  #state: VolumeState = "open";
  #failure: OperationError | undefined;
  #failureListeners: ((error: OperationError) => void)[] = [];
  #closing: Promise<void> | undefined;

  /** Made by Engine.open alone. */
  constructor(parts: VolumeParts) {
    this.sizeBytes = parts.sizeBytes;
    this.blockSizeBytes = parts.blockSizeBytes;
    this.readOnly = parts.readOnly;
    this.epoch = parts.epoch;
    this.#parts = parts;
    this.#journal = parts.journal;
    this.#writer = parts.writer;
    this.#admission = parts.admission;
    this.#readPath = parts.readPath;
    this.#everWritten = parts.everWritten.journaled;
  }

  read(offset: number, target: Buffer): MaybePromise<void> {
    this.#mustLieInside(offset, target.length);
    if (this.#failure !== undefined) throw this.#failure;
    return this.#readPath.read(offset / BLOCK_BYTES, target.length / BLOCK_BYTES, target, 0);
  }

  write(offset: number, source: Buffer, fua: boolean): MaybePromise<void> {
    this.#mustLieInside(offset, source.length);
    assert(!this.readOnly, "only a writable volume is written");
    const lba = offset / BLOCK_BYTES;
    const blocks = source.length / BLOCK_BYTES;
    if (this.#failure !== undefined) throw this.#failure;
    if (blocks > MAX_RECORD_BLOCKS || !this.#admission.isOpen(blocks))
      return this.#writeInTurn(lba, blocks, source, fua);
    this.#append(lba, blocks, source, 0);
    if (!this.#batching) this.#journal.commit();
    return fua ? this.flush() : undefined;
  }

  writeZeroes(offset: number, length: number, fua: boolean): MaybePromise<void> {
    this.#mustLieInside(offset, length);
    assert(!this.readOnly, "only a writable volume is written");
    const lba = offset / BLOCK_BYTES;
    const blocks = length / BLOCK_BYTES;
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#isHole(lba, blocks)) return undefined;
    if (!this.#admission.isOpen(0)) return this.#writeInTurn(lba, blocks, undefined, fua);
    this.#append(lba, blocks, undefined, 0);
    if (!this.#batching) this.#journal.commit();
    return fua ? this.flush() : undefined;
  }

  trim(offset: number, length: number, fua: boolean): MaybePromise<void> {
    return this.writeZeroes(offset, length, fua);
  }

  flush(): MaybePromise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#parts.durability === "s3" || this.#journal.distrusted) return this.#writer.flush();
    return this.#journal.sync()?.catch(() => this.#writer.flush());
  }

  beginBatch(): void {
    this.#batching = true;
  }

  commitBatch(): void {
    this.#batching = false;
    this.#journal.commit();
  }

  /** Resolves once everything that was acknowledged before is in S3, whatever the durability. */
  async drain(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    await this.#writer.flush();
  }

  status(): VolumeStatus {
    return {
      volumeId: this.#parts.volumeId,
      state: this.#state,
      failure: this.#failure?.message,
      epoch: this.epoch,
      durability: this.#parts.durability,
      sizeBytes: this.sizeBytes,
      blockSizeBytes: this.blockSizeBytes,
      neverWritten: !this.#everWritten,
      dirtyBytes: this.#writer.dirtyBytes,
      behindMs: this.#writer.behindMs(),
      journalUsedBytes: this.#journal.usedBytes(),
      journalLimitBytes: this.#journal.limitBytes,
      journalFullSeconds: this.#admission.secondsUntilFull(),
    };
  }

  /** Calls `listener` once when the volume fails for good (at once where it has). */
  onFailure(listener: (error: OperationError) => void): void {
    if (this.#failure === undefined) this.#failureListeners.push(listener);
    else listener(this.#failure);
  }

  /** What a part of the engine reports when the volume must stop: "fenced", "corrupt", or a broken journal. */
  fail(error: OperationError): void {
    if (this.#failure !== undefined || this.#state === "closed") return;
    this.#failure = error;
    this.#state = "failed";
    this.#parts.log.error("the volume has failed: all its I/O answers an error from now on", {
      operation: "fail",
      kind: error.kind,
      error: describe(error),
    });
    this.#writer.fail(error);
    this.#admission.fail(error);
    this.#parts.abort.abort(error);
    for (const listener of this.#failureListeners) listener(error);
    this.#failureListeners = [];
  }

  /** A segment has reached the map: a checkpoint may be due. */
  mapMoved(): void {
    this.#parts.checkpointer.maybeStart(this.#position());
  }

  /** Everything to S3, a checkpoint, and the journal removed. May be called again after it has failed. */
  async close(): Promise<void> {
    this.#closing ??= this.#close().finally(() => (this.#closing = undefined));
    await this.#closing;
  }

  /** Hand-over to the next process on this node: what is acknowledged is in the journal, S3 is not waited for. */
  async leave(): Promise<void> {
    if (this.#state === "closed") return;
    if (this.#state === "open") await this.#journal.sync()?.catch(() => this.#writer.flush());
    await this.#release(false);
  }

  async #close(): Promise<void> {
    if (this.#state === "closed") return;
    if (this.#state === "open") {
      await this.#writer.flush();
      await this.#writer.settled();
      await this.#parts.checkpointer.write(this.#position());
    }
    // A failed volume keeps its journal: the next owner here decides about it.
    await this.#release(this.#failure === undefined);
  }

  async #release(removeJournal: boolean): Promise<void> {
    this.#state = "closed";
    const closed = new OperationError("unavailable", "the volume is closed");
    this.#writer.fail(closed);
    this.#admission.fail(closed);
    this.#parts.abort.abort(closed);
    await this.#writer.settled();
    await this.#parts.checkpointer.idle();
    await (removeJournal ? this.#journal.remove() : this.#journal.close());
    this.#parts.map.close();
    this.#parts.released();
  }

  #mustLieInside(offset: number, length: number): void {
    assert(
      offset >= 0 &&
        length > 0 &&
        offset % BLOCK_BYTES === 0 &&
        length % BLOCK_BYTES === 0 &&
        offset + length <= this.sizeBytes,
      "a request is whole blocks inside the volume",
    );
    assert(this.#state !== "closed", "a closed volume takes no request");
  }

  #append(lba: number, blocks: number, source: Buffer | undefined, sourceAt: number): void {
    const value = this.#journal.append(this.epoch, lba, blocks, source, sourceAt);
    this.#everWritten = true;
    this.#writer.add(lba, blocks, value, this.#journal.position, this.#journal.sequence);
  }

  async #writeInTurn(lba: number, blocks: number, source: Buffer | undefined, fua: boolean): Promise<void> {
    for (let done = 0; done < blocks;) {
      const from = done;
      const count = source === undefined ? blocks : Math.min(MAX_RECORD_BLOCKS, blocks - from);
      await this.#admission.run(source === undefined ? 0 : count, () => {
        this.#append(lba + from, count, source, from * BLOCK_BYTES);
        this.#journal.commit();
      });
      done += count;
    }
    if (fua) await this.flush();
  }

  /** True where the whole range was never written, as can be told from memory: there is nothing to zero. */
  #isHole(lba: number, blocks: number): boolean {
    const { overlay, map } = this.#parts;
    overlay.locate(lba, blocks);
    if (overlay.foundValue !== 0 || overlay.foundBlocks < blocks) return false;
    const last = Math.floor((lba + blocks - 1) / SHARD_BLOCKS);
    for (let shard = Math.floor(lba / SHARD_BLOCKS); shard <= last; shard += 1) if (!map.isHole(shard)) return false;
    return true;
  }

  #position(): CheckpointPosition {
    const { appliedSequence, appliedJournalEnd } = this.#writer;
    const everWritten = appliedSequence > 0 || this.#parts.everWritten.stored;
    return { sequence: appliedSequence as SegmentSeq, journalEnd: appliedJournalEnd, everWritten };
  }
}
