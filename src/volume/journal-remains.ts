/**
 * What stands in a journal's files behind the end of what can be read: frames and commit marks that hold at their place.
 * Both are bound to their position, and no position is used twice: what an earlier use of a file left never holds.
 *
 * Records are appended and written in order, so that the death of a process leaves a beginning of what it wrote. As long
 * as the machine runs, whatever holds behind something that does not shows that the disk has changed, and that writes
 * are lost which were taken. A loss of power is another matter: it keeps any part of what was not synced. So a recovery
 * that goes on behind a torn record destroys what holds behind it, lest a later one takes it for such a sign.
 */
import { OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { isIntactRawFrame, journalFrameSeed, RAW_FRAME_BYTES } from "./format/frame.ts";
import { COMMIT_MARK_BYTES, FILE_HEADER_BYTES, readCommitMark } from "./format/journal-record.ts";
import { BLOCK_BYTES } from "./identity.ts";
import type { JournalFile, JournalReading } from "./journal-scan.ts";
import { lossTable } from "./recovery-tables.ts";

/** Heads, frames and marks begin at multiples of it. */
const UNIT_BYTES = 16;
const PAGE_BYTES = 4096;
const STEP_BYTES = 256 * 1024;
/** How far behind the first thing that does not hold another one is looked for: no single damage is taken to be longer. */
const WINDOW_BYTES = 1024 * 1024;
const zeroes = Buffer.alloc(UNIT_BYTES);

/** What the seeds of a journal start from, and the size of its files. */
export interface JournalIdentity {
  journalSeed: number;
  fileBytes: number;
}

interface Remain {
  offset: number;
  /** What a mark names; undefined for a frame. */
  sequence: number | undefined;
}

/**
 * Throws "corrupt" where a client waits that was told of writes which neither the journal nor the store has any more.
 * `found`: all files of the journal's directory; `read`: what could be read of them. Changes nothing.
 */
export async function mustNotBeMissed(
  journal: JournalIdentity,
  found: readonly JournalFile[],
  read: JournalReading,
  { durableSequence, clientWaits }: { durableSequence: number; clientWaits: boolean },
): Promise<void> {
  const client = clientWaits ? "waits" : "none";
  const behind = clientWaits ? await lostBehind(journal, found, read, durableSequence) : "not looked for";
  if (lossTable.decide({ client, behind }).action === "go on") return;
  throw new OperationError(
    "corrupt",
    "the journal was damaged on this node's disk while its server was down: writes that its device was told of are lost, and its files stay as they are",
    { context: { behind, readTo: read.end?.sequence ?? 0, stored: durableSequence } },
  );
}

/**
 * Where the machine has not lost power since the journal was written: whether records above `durableSequence` are gone
 * that were in it. "files": the journal goes on in a later one. "records": something holds behind the end.
 */
async function lostBehind(
  journal: JournalIdentity,
  found: readonly JournalFile[],
  { end, behind }: JournalReading,
  durableSequence: number,
): Promise<"nothing" | "files" | "records"> {
  if (end === undefined || behind.some((entry) => entry.header !== undefined)) return "files";
  const known = Math.max(durableSequence, end.sequence);
  const isStored = known > end.sequence;
  for (const entry of found) {
    if (entry.number < end.fileNumber) continue;
    const isLast = entry.number === end.fileNumber;
    if (isLast && entry.file.sizeBytes() < journal.fileBytes) return "records";
    // A file behind is one that was made ready, or one whose header is damaged.
    const from = isLast ? end.brokenAt : FILE_HEADER_BYTES;
    // Where the store holds what cannot be read, only the mark of the last commit says that it holds all: look for it.
    const to = isStored ? journal.fileBytes : from + WINDOW_BYTES;
    if (await holdsMore(journal, entry, { from, to }, { known, isStored })) return "records";
  }
  return "nothing";
}

/** True where what holds in that range is, or may be, of records above `known`. */
async function holdsMore(
  journal: JournalIdentity,
  entry: JournalFile,
  range: { from: number; to: number },
  { known, isStored }: { known: number; isStored: boolean },
): Promise<boolean> {
  let frames = false;
  let allKnown = false;
  for await (const { sequence } of remains(journal, entry, range)) {
    if (sequence === undefined) frames = true;
    else if (sequence > known) return true;
    else allKnown = true;
    if (frames && !isStored) return true;
  }
  return frames && !allKnown;
}

/**
 * Destroys all that holds in that range of the file, for good once the file is synced. A file that was cut short gets its
 * size again: that is a sign of damage as well. Throws what the disk fails with.
 */
export async function destroyRemains(
  journal: JournalIdentity,
  entry: JournalFile,
  range: { from: number; to: number },
  log: Log,
): Promise<void> {
  if (entry.file.sizeBytes() < journal.fileBytes) await entry.file.allocate(journal.fileBytes);
  let count = 0;
  for await (const { offset } of remains(journal, entry, range)) {
    entry.file.writeSync(zeroes, offset);
    count += 1;
  }
  if (count > 0) log.info("cut off what stood behind the journal's end", { operation: "open", count });
}

/** Every frame and mark that begins in the range and holds at its place. */
async function* remains(
  { journalSeed, fileBytes }: JournalIdentity,
  { file, number }: JournalFile,
  { from, to }: { from: number; to: number },
): AsyncGenerator<Remain> {
  const sizeBytes = file.sizeBytes();
  const end = Math.min(to, sizeBytes);
  if (from >= end) return;
  const buffer = Buffer.allocUnsafe(Math.min(STEP_BYTES + RAW_FRAME_BYTES, sizeBytes - from));
  for (let start = from; start < end; start += STEP_BYTES) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, sizeBytes - start));
    await file.read(bytes, start);
    const stop = Math.min(STEP_BYTES, end - start, bytes.length - UNIT_BYTES + 1);
    for (let at = 0; at < stop; at += UNIT_BYTES) {
      const offset = start + at;
      const isPageEnd = (offset + COMMIT_MARK_BYTES) % PAGE_BYTES === 0;
      if (!isPageEnd && !mayBeFrame(bytes, at)) continue;
      const seed = journalFrameSeed(journalSeed, number * fileBytes + offset);
      const sequence = isPageEnd ? readCommitMark(bytes, at, seed) : undefined;
      if (sequence !== undefined || isFrame(bytes, at, seed)) yield { offset, sequence };
    }
  }
}

/** What the header of every raw frame says. */
function mayBeFrame(bytes: Buffer, at: number): boolean {
  return bytes.readUInt32LE(at + 12) === BLOCK_BYTES && bytes[at + 10] === 1;
}

function isFrame(bytes: Buffer, at: number, seed: number): boolean {
  if (at + RAW_FRAME_BYTES > bytes.length || !mayBeFrame(bytes, at)) return false;
  const lba = bytes.readUInt32LE(at + 4) + bytes.readUInt16LE(at + 8) * 0x1_0000_0000;
  return isIntactRawFrame(bytes, at, lba, seed);
}
