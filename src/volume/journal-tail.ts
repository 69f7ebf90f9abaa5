/**
 * The end of a journal's current file: records that were appended and not written yet, and the last, partly filled
 * page, which is written again with the records that follow it. Only whole pages are written, so that a recycled file
 * is never read to be written.
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
import { encodeRecordHead, recordHeadBytes, type RecordHead } from "./format/journal-record.ts";
import { BLOCK_BYTES } from "./identity.ts";

const PAGE_BYTES = 4096;
/** What is staged at most before pages of it are written; a volume with few writes at a time needs the least. */
const STAGING_BYTES = 256 * 1024;
const LEAST_STAGING_BYTES = 64 * 1024;

export class JournalTail {
  /** End of the last record, an offset in the file as all others here. */
  end = 0;
  /** What the disk refused a write with. */
  failure: OperationError | undefined;
  #staging = Buffer.allocUnsafeSlow(LEAST_STAGING_BYTES);
  #file: DiskFile | undefined;
  #from = 0;
  #written = 0;

  /** Goes on in `file` at `offset`, a multiple of a page; everything before must have been written. */
  enter(file: DiskFile, offset: number): void {
    assert(offset % PAGE_BYTES === 0, "a file is entered at a page");
    this.#file = file;
    this.#from = offset;
    this.#written = offset;
    this.end = offset;
  }

  /** Goes on in `file` behind the records that end at `offset`. */
  async load(file: DiskFile, offset: number): Promise<void> {
    const pageStart = offset - (offset % PAGE_BYTES);
    this.enter(file, pageStart);
    if (offset > pageStart) await file.read(this.#staging.subarray(0, offset - pageStart), pageStart);
    this.#written = offset;
    this.end = offset;
  }

  /**
   * Writes zeroes from the end of what was loaded to the end of its page, over whatever record begins there. Where the
   * disk refuses it, nothing is appended any more: see `failure`.
   */
  clearPage(): void {
    const fill = this.end - this.#from;
    assert(fill < PAGE_BYTES, "nothing was appended yet");
    this.#staging.fill(0, fill, PAGE_BYTES);
    this.#put(PAGE_BYTES);
  }

  /**
   * Puts one record behind the others: its head, and `record.blockCount` raw frames from `source` at `sourceAt` where
   * there is one. `place` is what the seeds of its frames depend on: see journalFrameSeed. Returns the record's
   * checksum. Throws "unavailable" where the disk fails: then it was not taken.
   */
  append(
    record: RecordHead,
    place: { journalSeed: number; position: number },
    source: Buffer | undefined,
    sourceAt: number,
  ): number {
    const headBytes = recordHeadBytes(1);
    let fill = this.end - this.#from;
    let length = headBytes;
    if (fill + headBytes > this.#staging.length) fill = this.#makeRoom(fill);
    const checksum = encodeRecordHead(this.#staging, fill, record);
    fill += headBytes;
    for (let block = 0; source !== undefined && block < record.blockCount; block += 1) {
      if (fill + RAW_FRAME_BYTES > this.#staging.length) fill = this.#makeRoom(fill);
      const from = sourceAt + block * BLOCK_BYTES;
      source.copy(this.#staging, fill + FRAME_HEADER_BYTES, from, from + BLOCK_BYTES);
      const seed = journalFrameSeed(place.journalSeed, place.position + block * RAW_FRAME_BYTES);
      sealRawFrame(this.#staging, fill, record.lba + block, seed);
      fill += RAW_FRAME_BYTES;
      length += RAW_FRAME_BYTES;
    }
    this.end += length;
    assert(this.#from + fill === this.end, "a record has the length that it says");
    return checksum;
  }

  /** Writes what was not written yet. Throws "unavailable" where the disk fails, now or before. */
  write(): void {
    if (this.#written === this.end) return;
    this.#write(this.end - this.#from);
    this.#written = this.end;
  }

  /** Fills `target` from `offset`, wherever the bytes are. */
  read(offset: number, target: Buffer): void {
    const isWritten = offset + target.length <= this.#written;
    const inFile = isWritten ? target.length : Math.max(0, Math.min(target.length, this.#from - offset));
    if (inFile > 0) this.#file!.readSync(inFile === target.length ? target : target.subarray(0, inFile), offset);
    if (inFile === target.length) return;
    const from = offset + inFile - this.#from;
    this.#staging.copy(target, inFile, from, from + target.length - inFile);
  }

  /** Makes room in the staging buffer, `fill` bytes of which are in use; answers how many are then. */
  #makeRoom(fill: number): number {
    if (this.#staging.length < STAGING_BYTES) {
      const wider = Buffer.allocUnsafeSlow(2 * this.#staging.length);
      this.#staging.copy(wider, 0, 0, fill);
      this.#staging = wider;
      return fill;
    }
    const whole = fill - (fill % PAGE_BYTES);
    this.#write(whole);
    if (this.end < this.#from) this.#written = this.end;
    return fill - whole;
  }

  /** Writes the first `length` staged bytes, padded to whole pages; the last page stays staged where it is not full. */
  #write(length: number): void {
    if (this.failure !== undefined) throw this.failure;
    const padded = Math.ceil(length / PAGE_BYTES) * PAGE_BYTES;
    const whole = length - (length % PAGE_BYTES);
    if (padded > length) this.#staging.fill(0, length, padded);
    const failure = this.#put(padded);
    if (failure !== undefined) throw failure;
    if (whole > 0) this.#staging.copyWithin(0, whole, whole + PAGE_BYTES);
    this.#from += whole;
  }

  /** Writes the first `length` staged bytes where they belong; answers, and keeps, what the disk refused it with. */
  #put(length: number): OperationError | undefined {
    try {
      this.#file!.writeSync(this.#staging.subarray(0, length), this.#from);
    } catch (error) {
      this.failure = asOperationError(
        error,
        "unavailable",
        "the journal's disk fails: move the volume to another node",
      );
    }
    return this.failure;
  }
}
