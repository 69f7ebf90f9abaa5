/**
 * The end of a journal's current file: records that were appended and not written yet, and the last, partly filled
 * page, which is written again with the records that follow it. Only whole pages are written, so that a recycled file
 * is never read to be written. The last bytes of a commit's last page are its mark, by which a commit that was cut short
 * is told from one that was damaged later (journal-remains.ts); where the records fill their last page, one more page
 * is written for it.
 *
 *   file     |  … records …  |  page  |  page  |
 *   staged                   | records, written or not |
 *                            ^ from        ^ written   ^ end
 *
 * Invariant: what of the file lies at `from` or behind it stands in memory; what lies below is in the file. So a record
 * can be read from the moment it was appended, also where the disk has refused it. After a failed write nothing is
 * appended or written any more.
 */
import { assert } from "../base/assert.ts";
import type { DiskFile } from "../base/disk.ts";
import { asOperationError, type OperationError } from "../base/errors.ts";
import { FRAME_HEADER_BYTES, journalFrameSeed, RAW_FRAME_BYTES, sealRawFrame } from "./format/frame.ts";
import {
  COMMIT_MARK_BYTES,
  encodeRecordHead,
  recordHeadBytes,
  type RecordHead,
  writeCommitMark,
} from "./format/journal-record.ts";
import { BLOCK_BYTES } from "./identity.ts";

const PAGE_BYTES = 4096;
/** What is staged at most before pages of it are written; a volume with few writes at a time needs the least. */
const STAGING_BYTES = 256 * 1024;
const LEAST_STAGING_BYTES = 64 * 1024;

/** One file of a journal, as the seeds of what stands in it need it. */
export interface JournalPlace {
  file: DiskFile;
  /** Position of the file's first byte. */
  position: number;
  fileBytes: number;
  journalSeed: number;
}

export class JournalTail {
  /** End of the last record, an offset in the file as all others here. */
  end = 0;
  /** What the disk refused a write with. */
  failure: OperationError | undefined;
  #capacity = LEAST_STAGING_BYTES;
  /** One page more than is ever in use: for the mark. */
  #staging = Buffer.allocUnsafeSlow(LEAST_STAGING_BYTES + PAGE_BYTES);
  #place: JournalPlace | undefined;
  #from = 0;
  #written = 0;
  /** Of the last record. */
  #sequence = 0;

  /** Goes on in `place` at `offset`, a multiple of a page; everything before must have been written. */
  enter(place: JournalPlace, offset: number): void {
    assert(offset % PAGE_BYTES === 0, "a file is entered at a page");
    this.#place = place;
    this.#from = offset;
    this.#written = offset;
    this.end = offset;
  }

  /** Goes on in `place` behind the records that end at `offset`, the last of which is `sequence`. */
  async load(place: JournalPlace, offset: number, sequence: number): Promise<void> {
    const pageStart = offset - (offset % PAGE_BYTES);
    this.enter(place, pageStart);
    if (offset > pageStart) await place.file.read(this.#staging.subarray(0, offset - pageStart), pageStart);
    this.#written = offset;
    this.#sequence = sequence;
    this.end = offset;
  }

  /**
   * Writes zeroes and a mark from the end of what was loaded to the end of its page, over whatever record begins there.
   * Answers where the page ends. Where the disk refuses it, nothing is appended any more: see `failure`.
   */
  clearPage(): number {
    const fill = this.end - this.#from;
    assert(fill < PAGE_BYTES, "nothing was appended yet");
    const padded = this.#mark(fill);
    this.#put(padded);
    return this.#from + padded;
  }

  /** Takes nothing any more: the disk has failed with `error`. */
  fail(error: unknown): void {
    this.failure = asOperationError(error, "unavailable", "the journal's disk fails: move the volume to another node");
  }

  /**
   * Puts one record behind the others: its head, and `record.blockCount` raw frames from `source` at `sourceAt` where
   * there is one. Returns the record's checksum. Throws "unavailable" where the disk fails: then it was not taken.
   */
  append(record: RecordHead, source: Buffer | undefined, sourceAt: number): number {
    const headBytes = recordHeadBytes(1);
    const { journalSeed, position } = this.#place!;
    const framePosition = position + this.end + headBytes;
    let fill = this.end - this.#from;
    let length = headBytes;
    if (fill + headBytes > this.#capacity) fill = this.#makeRoom(fill);
    const checksum = encodeRecordHead(this.#staging, fill, record);
    fill += headBytes;
    for (let block = 0; source !== undefined && block < record.blockCount; block += 1) {
      if (fill + RAW_FRAME_BYTES > this.#capacity) fill = this.#makeRoom(fill);
      const from = sourceAt + block * BLOCK_BYTES;
      source.copy(this.#staging, fill + FRAME_HEADER_BYTES, from, from + BLOCK_BYTES);
      const seed = journalFrameSeed(journalSeed, framePosition + block * RAW_FRAME_BYTES);
      sealRawFrame(this.#staging, fill, record.lba + block, seed);
      fill += RAW_FRAME_BYTES;
      length += RAW_FRAME_BYTES;
    }
    this.end += length;
    this.#sequence = record.sequence;
    assert(this.#from + fill === this.end, "a record has the length that it says");
    return checksum;
  }

  /** Writes what was not written yet. Throws "unavailable" where the disk fails, now or before. */
  write(): void {
    if (this.#written === this.end) return;
    const length = this.end - this.#from;
    this.#write(length, this.#mark(length));
    this.#written = this.end;
  }

  /** True where everything before `end` stands in the file. */
  isWritten(end: number): boolean {
    return end <= this.#written || end <= this.#from;
  }

  /** Fills `target` from `offset` with bytes of which the last ones are not in the file yet. */
  read(offset: number, target: Buffer): void {
    const inFile = Math.max(0, Math.min(target.length, this.#from - offset));
    if (inFile > 0) this.#place!.file.readSync(target.subarray(0, inFile), offset);
    const from = offset + inFile - this.#from;
    this.#staging.copy(target, inFile, from, from + target.length - inFile);
  }

  /** Makes room in the staging buffer, `fill` bytes of which are in use; answers how many are then. */
  #makeRoom(fill: number): number {
    if (this.#capacity < STAGING_BYTES) {
      this.#capacity *= 2;
      const wider = Buffer.allocUnsafeSlow(this.#capacity + PAGE_BYTES);
      this.#staging.copy(wider, 0, 0, fill);
      this.#staging = wider;
      return fill;
    }
    const whole = fill - (fill % PAGE_BYTES);
    this.#write(whole, whole);
    if (this.end < this.#from) this.#written = this.end;
    return fill - whole;
  }

  /**
   * Fills the page behind the first `length` staged bytes with zeroes and a mark at its end; answers where that is. No
   * mark where the file ends there.
   */
  #mark(length: number): number {
    const { position, fileBytes, journalSeed } = this.#place!;
    if (this.#from + length === fileBytes) return length;
    const padded = length - (length % PAGE_BYTES) + PAGE_BYTES;
    const at = padded - COMMIT_MARK_BYTES;
    if (at > length) this.#staging.fill(0, length, at);
    writeCommitMark(this.#staging, at, journalFrameSeed(journalSeed, position + this.#from + at), this.#sequence);
    return padded;
  }

  /** Writes the first `padded` staged bytes, `length` of them records; the last page stays staged where it is not full. */
  #write(length: number, padded: number): void {
    if (this.failure !== undefined) throw this.failure;
    const whole = length - (length % PAGE_BYTES);
    const failure = this.#put(padded);
    if (failure !== undefined) throw failure;
    if (whole > 0) this.#staging.copyWithin(0, whole, whole + PAGE_BYTES);
    this.#from += whole;
  }

  /** Writes the first `length` staged bytes where they belong; answers, and keeps, what the disk refused it with. */
  #put(length: number): OperationError | undefined {
    try {
      this.#place!.file.writeSync(this.#staging.subarray(0, length), this.#from);
    } catch (error) {
      this.fail(error);
    }
    return this.failure;
  }
}
