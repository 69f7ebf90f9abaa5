/**
 * Reading a journal back after a restart: which files belong together, and every record up to the first one whose
 * checksum, sequence, link or frame does not hold. Nothing behind that point is believed, whatever it looks like:
 * records are only ever appended, so what comes after a bad one was never promised to anybody.
 * It changes no file's content.
 */
import type { Disk, DiskFile } from "../base/disk.ts";
import { isIntactRawFrame, journalFrameSeed, RAW_FRAME_BYTES } from "./format/frame.ts";
import {
  decodeFileHeader,
  decodeRecordHead,
  EXTENT_DATA,
  FILE_HEADER_BYTES,
  type JournalFileHeader,
  type JournalRecord,
} from "./format/journal-record.ts";
import type { JournalState } from "./recovery-tables.ts";

const SCAN_BYTES = 4 * 1024 * 1024;
const blankHeader = Buffer.alloc(FILE_HEADER_BYTES);
const namePattern = /^([0-9a-f]{16})\.journal$/;

export function journalFileName(fileNumber: number): string {
  return `${fileNumber.toString(16).padStart(16, "0")}.journal`;
}

export interface JournalFile {
  number: number;
  file: DiskFile;
  header: JournalFileHeader | undefined;
  /** The header of another number: of the file's last use, before it was renamed. */
  former?: JournalFileHeader | undefined;
  /** Where the file holds something that is no header: neither what a former use left nor zeroes. */
  isDamaged?: boolean;
}

/**
 * openJournalFiles for the volume `uid`. A process that died when it was about to use its only file again has left it with
 * its next name and its former header: what stands in it is untouched, and gets its former name back.
 */
export async function findJournalFiles(disk: Disk, uid: string): Promise<JournalFile[]> {
  const found = await openJournalFiles(disk);
  const [{ number, file, former } = {}] = found;
  if (found.length !== 1 || former?.uid !== uid || former.fileNumber + 1 !== number) return found;
  await file!.close();
  await disk.rename(journalFileName(number), journalFileName(former.fileNumber));
  await disk.sync();
  return await openJournalFiles(disk);
}

/** All journal files of the directory, opened, by number; `header` is undefined where it is none of this number. */
async function openJournalFiles(disk: Disk): Promise<JournalFile[]> {
  const files: JournalFile[] = [];
  try {
    for (const name of await disk.list()) {
      const match = namePattern.exec(name);
      if (match === null) continue;
      const number = Number.parseInt(match[1], 16);
      const file = await disk.open(name);
      const entry: JournalFile = { number, file, header: undefined };
      files.push(entry);
      if (file.sizeBytes() < FILE_HEADER_BYTES) continue;
      const page = Buffer.allocUnsafe(FILE_HEADER_BYTES);
      await file.read(page, 0);
      const header = decodeFileHeader(page);
      if (header?.fileNumber === number) entry.header = header;
      else entry.former = header;
      if (header === undefined) entry.isDamaged = !page.equals(blankHeader);
    }
  } catch (error) {
    await Promise.all(files.map((entry) => entry.file.close()));
    throw error;
  }
  return files.toSorted((left, right) => left.number - right.number);
}

/** Whose journal the newest intact header says it is. */
export function journalState(files: readonly JournalFile[], uid: string): JournalState {
  const newest = files.findLast((entry) => entry.header !== undefined)?.header;
  if (newest !== undefined) return newest.uid === uid ? "of this volume" : "of another volume";
  return files.some((entry) => entry.isDamaged) ? "unreadable" : "none";
}

/**
 * The files of the journal that the newest intact header belongs to, back to the one that begins it. Numbers may be
 * missing: a file that was given back and renamed leaves a hole before others that were not renamed yet.
 */
export function currentFiles(files: readonly JournalFile[]): JournalFile[] {
  const newest = files.findLast((entry) => entry.header !== undefined)?.header;
  if (newest === undefined) return [];
  const own = files.filter(
    ({ header }) =>
      header !== undefined &&
      header.uid === newest.uid &&
      header.journalId.equals(newest.journalId) &&
      header.fileBytes === newest.fileBytes,
  );
  const beginning = own.findLastIndex((entry) => entry.header!.begins);
  return own.slice(Math.max(0, beginning));
}

/**
 * Of current files, those that hold the records from `sequence` on: the last one that begins at or before it, and what
 * follows without a hole. Files before it hold nothing that is needed, and one of them may have been in the middle of
 * being used again. Empty where the records are not there.
 */
function filesFrom(files: readonly JournalFile[], sequence: number): JournalFile[] {
  const first = files.findLastIndex((entry) => entry.header!.firstSequence <= sequence);
  if (first < 0) return [];
  const run = files.slice(first);
  const end = run.findIndex((entry, index) => entry.number !== run[0].number + index);
  return end < 0 ? run : run.slice(0, end);
}

/** How far a journal can be read, from the record behind `durableSequence` on, and what is left. */
export interface JournalReading {
  /** Those that were read, or that follow them. */
  files: JournalFile[];
  end: ScanEnd | undefined;
  behind: JournalFile[];
  reading: "cannot begin" | "ends too early" | "reaches the store's end";
}

/** Reads the current journal of `found`; `visit` gets what scanRecords gives it, above `durableSequence`. */
export async function readBack(
  found: readonly JournalFile[],
  { journalSeed, durableSequence }: { journalSeed: number; durableSequence: number },
  visit: (record: JournalRecord, fileNumber: number, frameOffset: number) => void,
): Promise<JournalReading> {
  const current = currentFiles(found);
  const files = filesFrom(current, durableSequence + 1);
  const scan = { journalSeed, verifyAbove: durableSequence };
  const end = await scanRecords(files, scan, (record, fileNumber, frameOffset) => {
    if (record.sequence <= durableSequence) return;
    visit(record, fileNumber, frameOffset);
  });
  const behind = filesBehind(found, current, end);
  if (end === undefined) return { files, end, behind, reading: "cannot begin" };
  const reading = end.sequence < durableSequence ? "ends too early" : "reaches the store's end";
  return { files, end, behind, reading };
}

/** Files of the journal behind the one in which reading stopped: whatever they hold cannot be replayed any more. */
function filesBehind(
  found: readonly JournalFile[],
  current: readonly JournalFile[],
  end: ScanEnd | undefined,
): JournalFile[] {
  const last = end?.fileNumber ?? 0;
  return found.filter((entry) => entry.number > last && (current.includes(entry) || entry.isDamaged === true));
}

/** Where appending goes on: just behind the last record that holds. */
export interface ScanEnd {
  fileNumber: number;
  /** Offset in that file. */
  offset: number;
  /** Of the head or frame that does not hold: there, or further on in the record that begins there. */
  brokenAt: number;
  chain: number;
  /** Sequence and epoch of the last record; the sequence before the first one where there is none. */
  sequence: number;
  epoch: number;
}

/**
 * Reads the records of `files` (from filesFrom) in order and calls `visit` with each, and with the file offset of
 * its first frame. Frames are verified for records above `verifyAbove` only: lower ones are in S3 already. Undefined where
 * there are no files.
 */
async function scanRecords(
  files: readonly JournalFile[],
  options: { journalSeed: number; verifyAbove: number },
  visit: (record: JournalRecord, fileNumber: number, frameOffset: number) => void,
): Promise<ScanEnd | undefined> {
  const first = files[0]?.header;
  if (first === undefined) return undefined;
  const end: ScanEnd = {
    fileNumber: first.fileNumber,
    offset: FILE_HEADER_BYTES,
    brokenAt: FILE_HEADER_BYTES,
    chain: first.chain,
    sequence: first.firstSequence - 1,
    epoch: 0,
  };
  for (const entry of files) {
    const header = entry.header!;
    // The records' own links would stop the reading as well, but only inside this file: appending would then go on
    // behind a header that names another record before it, and a later recovery that begins here would find nothing.
    if (header.firstSequence !== end.sequence + 1 || header.chain !== end.chain) break;
    end.fileNumber = header.fileNumber;
    end.offset = FILE_HEADER_BYTES;
    const reader = new WindowReader(entry.file);
    for (;;) {
      end.brokenAt = end.offset;
      const record = decodeRecordHead(await reader.at(end.offset, 32 + 16 * 1024), end.chain);
      if (record === undefined || record.sequence !== end.sequence + 1 || record.epoch < end.epoch) break;
      if (end.offset + record.lengthBytes > entry.file.sizeBytes()) break;
      if (record.sequence > options.verifyAbove) {
        const broken = await brokenFrame(reader, record, entry.number, end.offset, header, options);
        if (broken !== undefined) {
          end.brokenAt = broken;
          break;
        }
      }
      visit(record, entry.number, end.offset + record.headBytes);
      end.offset += record.lengthBytes;
      end.chain = record.checksum;
      end.sequence = record.sequence;
      end.epoch = record.epoch;
    }
  }
  return end;
}

/** Offset of the first frame of a record that does not hold; undefined where all hold. */
async function brokenFrame(
  reader: WindowReader,
  record: JournalRecord,
  fileNumber: number,
  recordOffset: number,
  header: JournalFileHeader,
  options: { journalSeed: number },
): Promise<number | undefined> {
  let offset = recordOffset + record.headBytes;
  for (const extent of record.extents) {
    if (extent.kind !== EXTENT_DATA) continue;
    for (let block = 0; block < extent.blockCount; block += 1) {
      const bytes = await reader.at(offset, RAW_FRAME_BYTES);
      if (bytes.length < RAW_FRAME_BYTES) return offset;
      const seed = journalFrameSeed(options.journalSeed, fileNumber * header.fileBytes + offset);
      if (!isIntactRawFrame(bytes, 0, extent.lba + block, seed)) return offset;
      offset += RAW_FRAME_BYTES;
    }
  }
  return undefined;
}

/** Reads a file through a window that moves forward. */
class WindowReader {
  readonly #file: DiskFile;
  readonly #sizeBytes: number;
  readonly #window: Buffer;
  #start = 0;
  #length = 0;

  constructor(file: DiskFile) {
    this.#file = file;
    this.#sizeBytes = file.sizeBytes();
    this.#window = Buffer.allocUnsafe(Math.min(SCAN_BYTES, this.#sizeBytes));
  }

  /** The bytes at `offset`, up to `length` of them, fewer at the file's end; valid until the next call. */
  async at(offset: number, length: number): Promise<Buffer> {
    const stop = Math.min(offset + length, this.#sizeBytes);
    if (offset < this.#start || stop > this.#start + this.#length) {
      this.#start = offset;
      this.#length = Math.min(this.#window.length, this.#sizeBytes - offset);
      await this.#file.read(this.#window.subarray(0, this.#length), offset);
    }
    return this.#window.subarray(offset - this.#start, stop - this.#start);
  }
}
