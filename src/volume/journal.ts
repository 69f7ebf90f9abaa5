/**
 * The journal of one volume on the node's disk: every acknowledged write stands here until S3 holds it.
 *
 * - append puts a record into memory. commit writes what was appended through the page cache on the calling thread: it
 *   survives the death of the process then, and only then may it be acknowledged. One write for many records: measured,
 *   4.6 µs of a 4 KiB write's 17 µs were its own pwrite. sync makes everything appended so far survive the machine
 *   (group commit: calls that come meanwhile share the next).
 * - Space is a row of preallocated files; release() gives back what S3 holds, and files are renamed to the row's end,
 *   never made anew. The next file is made ready before the current one is full, so that append never waits for it:
 *   hasRoom() tells, and waitForRoom() waits.
 * - A failed sync makes the journal distrusted for ever: the caller must reach durability by S3 instead. A failed
 *   write breaks it: no further append is taken, and what could not be written stays readable from memory.
 * Formats: format/journal-record.ts, format/frame.ts. What is not written yet: journal-tail.ts. Recovery:
 * journal-scan.ts, journal-remains.ts.
 */
import { assert } from "../base/assert.ts";
import { crc32 } from "../base/checksum.ts";
import type { Disk, DiskFile } from "../base/disk.ts";
import { describe, isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import { isIntactRawFrame, journalFrameSeed, RAW_FRAME_BYTES } from "./format/frame.ts";
import {
  encodeFileHeader,
  EXTENT_DATA,
  FILE_HEADER_BYTES,
  JOURNAL_FILE_BYTES,
  type JournalRecord,
  recordHeadBytes,
} from "./format/journal-record.ts";
import { destroyRemains, type JournalIdentity, mustNotBeMissed } from "./journal-remains.ts";
import {
  currentFiles,
  findJournalFiles,
  type JournalFile,
  journalFileName,
  type JournalReading,
  journalState,
  readBack,
} from "./journal-scan.ts";
import { readFile, warmFile } from "./journal-reads.ts";
import { type JournalPlace, JournalTail } from "./journal-tail.ts";
import { quarantine } from "./quarantine.ts";
import { type JournalState, tailTable } from "./recovery-tables.ts";

const WRITE_BACK_BYTES = 256 * 1024;

export interface JournalOptions {
  disk: Disk;
  uid: string;
  random: Random;
  log: Log;
  /** Most bytes of journal files; at least two files' worth. */
  limitBytes: number;
  /** Size of one file; a journal keeps the size that it was begun with. */
  fileBytes?: number | undefined;
}

export class Journal {
  readonly #disk: Disk;
  readonly #uid: string;
  readonly #log: Log;
  readonly #random: Random;
  readonly #limitBytes: number;
  readonly #tail = new JournalTail();
  #fileBytes: number;
  #journalId: Buffer;
  #seed: number;
  /** Every file that is part of the row, ready ones included, by number. */
  #files = new Map<number, JournalFile>();
  /** Files found at open, until recover() or begin() has decided. */
  #found: JournalFile[];
  /** Of all files found: a journal that begins again goes on behind it. */
  readonly #highestFound: number;
  #current: JournalFile | undefined;
  #chain = 0;
  #sequence = 0;
  /** Everything below this position is in S3. */
  #released = 0;
  #syncedPosition = 0;
  #unsynced = new Set<JournalFile>();
  /** Files that were read back, with how many bytes of each: written again before the first sync. */
  readonly #readBack = new Map<JournalFile, number>();
  /** The one of them that was added last. */
  #unsyncedLast: JournalFile | undefined;
  #syncing: Promise<void> | undefined;
  #syncingPosition = 0;
  #nextSync: Promise<void> | undefined;
  #preparing: Promise<void> | undefined;
  #roomWaiters: (() => void)[] = [];
  /** The position at which the disk refused another file; undefined where it gave the last one. */
  #refusedAt: number | undefined;
  #closed = false;
  /** Set by a failed sync: sync() throws from then on. */
  distrusted = false;

  /** Opens the directory and reads which journal is there; call recover() or begin() next. */
  static async open(options: JournalOptions): Promise<Journal> {
    return new Journal(options, await findJournalFiles(options.disk, options.uid));
  }

  private constructor(options: JournalOptions, found: JournalFile[]) {
    this.#disk = options.disk;
    this.#uid = options.uid;
    this.#log = options.log;
    this.#random = options.random;
    this.#limitBytes = options.limitBytes;
    this.#found = found;
    this.#highestFound = found.at(-1)?.number ?? 0;
    this.state = journalState(found, options.uid);
    const header = this.state === "of this volume" ? currentFiles(found).at(-1)?.header : undefined;
    this.#journalId = header?.journalId ?? options.random.bytes(16);
    this.#fileBytes = header?.fileBytes ?? options.fileBytes ?? JOURNAL_FILE_BYTES;
    this.#seed = crc32(this.#journalId);
  }

  /** What the directory held when it was opened. */
  readonly state: JournalState;

  /** True where that is a journal of this volume. */
  get hasHistory(): boolean {
    return this.state === "of this volume";
  }

  /** Identity of this journal: 16 random bytes; what START records name. */
  get journalId(): Buffer {
    return this.#journalId;
  }

  /** What the seeds of this journal's frames start from: see journalFrameSeed. */
  get frameSeed(): number {
    return this.#seed;
  }

  /** Sequence of the last record appended. */
  get sequence(): number {
    return this.#sequence;
  }

  /** The position behind the last record. */
  get position(): number {
    return (this.#current?.number ?? 0) * this.#fileBytes + this.#tail.end;
  }

  get limitBytes(): number {
    return this.#limitBytes;
  }

  /** Bytes from the oldest record that S3 does not hold to the end. */
  usedBytes(): number {
    return this.position - this.#released;
  }

  /**
   * Reads the records back. `visit` gets every record above the durable sequence (lower ones are in S3), with the position
   * of its first frame. Appending then goes on behind the last record that holds; or in a new file where S3 is ahead
   * of what this disk has kept. "corrupt", and nothing is changed, where a client waits that was told of lost writes.
   */
  async recover(
    { durableSequence, clientWaits }: { durableSequence: number; clientWaits: boolean },
    visit: (record: JournalRecord, framePosition: number) => void,
  ): Promise<void> {
    assert(this.hasHistory, "only a journal with history is recovered");
    let oldest = 0;
    const scan = { journalSeed: this.#seed, durableSequence };
    const read = await readBack(this.#found, scan, (record, fileNumber, frameOffset) => {
      const position = fileNumber * this.#fileBytes + frameOffset;
      if (oldest === 0) oldest = position - record.headBytes;
      visit(record, position);
    });
    await mustNotBeMissed(this.#identity, this.#found, read, { durableSequence, clientWaits });
    const { behind, reading } = read;
    const { action, name } = tailTable.decide({ reading, behind: behind.length > 0 ? "files" : "nothing" });
    const fields = { operation: "open", state: name, durableSequence, readTo: read.end?.sequence };
    if (action === "go on") this.#log.info("read the local journal", fields);
    else if (action === "begin behind the store") this.#log.warn("the local journal begins anew", fields);
    else {
      // After a loss of power this is as it should be where nothing was flushed to this disk; people may know better.
      const kept = await this.#rename(action === "go on, set aside what is behind" ? behind : this.#found);
      this.#log.error("a part of the local journal is set aside and not replayed", { ...fields, files: kept });
    }
    if (action === "go on" || action === "go on, set aside what is behind") await this.#goOn(read, oldest, clientWaits);
    else await this.begin(durableSequence + 1);
  }

  get #identity(): JournalIdentity {
    return { journalSeed: this.#seed, fileBytes: this.#fileBytes };
  }

  /** `entry`, as the end of the journal is written in it. */
  #placeOf({ file, number }: JournalFile): JournalPlace {
    return { file, position: number * this.#fileBytes, fileBytes: this.#fileBytes, journalSeed: this.#seed };
  }

  /** Appending goes on where reading has ended. */
  async #goOn({ files, end: found }: JournalReading, oldest: number, clientWaits: boolean): Promise<void> {
    const end = found!;
    const last = files.find((entry) => entry.number === end.fileNumber)!;
    for (const entry of files) if (entry.number <= last.number) this.#files.set(entry.number, entry);
    await this.#discard(this.#found.filter((entry) => !this.#files.has(entry.number)));
    this.#found = [];
    this.#current = last;
    this.#chain = end.chain;
    this.#sequence = end.sequence;
    await this.#tail.load(this.#placeOf(last), end.offset, end.sequence);
    // What was read back may still be in the page cache alone: the next sync covers it.
    for (const entry of this.#files.values()) {
      this.#unsynced.add(entry);
      this.#readBack.set(entry, entry === last ? end.offset : entry.file.sizeBytes());
    }
    await this.#cutOff(last, clientWaits ? end.brokenAt : this.#fileBytes);
    await this.#disk.sync();
    this.#released = oldest === 0 ? this.position : oldest;
    this.release(this.#released);
    this.#prepareNext();
  }

  /**
   * Destroys the record that may stand behind the end, and all that holds up to `to`, for good. A loss of power can
   * leave records behind a torn one: with the next loss, which takes what was written over them, they would look like
   * the continuation of what S3 holds; without it, like a sign of damage (journal-remains.ts).
   */
  async #cutOff(entry: JournalFile, to: number): Promise<void> {
    if (this.#tail.end === this.#fileBytes) return;
    const from = this.#tail.clearPage();
    if (this.#tail.failure !== undefined) return;
    try {
      await destroyRemains(this.#identity, entry, { from, to }, this.#log);
    } catch (error) {
      // As after a failed write: what the journal holds can still be uploaded.
      return this.#tail.fail(error);
    }
    await entry.file.sync().catch((error: unknown) => this.#distrust(error));
  }

  /** Begins the journal anew at `firstSequence`: what was there is removed, or set aside by setAside() before. */
  async begin(firstSequence: number): Promise<void> {
    const number = this.#highestFound + 1;
    const found = this.#found;
    this.#found = [];
    this.#sequence = firstSequence - 1;
    this.#chain = 0;
    const file = await this.#disk.open(journalFileName(number), { create: true });
    await file.allocate(this.#fileBytes);
    const entry: JournalFile = { number, file, header: undefined };
    this.#files.set(number, entry);
    this.#enter(entry, true);
    this.#released = this.position;
    await file.sync();
    await this.#disk.sync();
    await this.#discard(found);
    this.#prepareNext();
  }

  /** Keeps the files of a journal that must not be replayed for people to look at, and takes a new identity. */
  async setAside(): Promise<string[]> {
    const kept = await this.#rename(this.#found);
    this.#journalId = this.#random.bytes(16);
    this.#seed = crc32(this.#journalId);
    return kept;
  }

  /** True where a record of `dataBlocks` data blocks can be appended at once. */
  hasRoom(dataBlocks: number): boolean {
    const length = recordHeadBytes(1) + dataBlocks * RAW_FRAME_BYTES;
    return this.#tail.end + length <= this.#fileBytes || this.#files.has(this.#current!.number + 1);
  }

  /** Resolves when there may be room again (a file was made ready); ask hasRoom() then. */
  waitForRoom(): Promise<void> {
    this.#prepareNext();
    return new Promise((resolve) => this.#roomWaiters.push(resolve));
  }

  /**
   * Appends one record: `blockCount` blocks from `lba`, data from `source` at `sourceAt`, or zeroes where `source` is
   * undefined. Returns the position of its first frame, or minus the record's position for zeroes. It can be read at
   * once and is safe after commit(). Only where hasRoom() said so. Throws "unavailable" when the disk fails: then the
   * record was not taken.
   */
  append(epoch: number, lba: number, blockCount: number, source?: Buffer, sourceAt = 0): number {
    if (this.#tail.failure !== undefined) throw this.#tail.failure;
    const head = recordHeadBytes(1);
    const length = head + (source === undefined ? 0 : blockCount * RAW_FRAME_BYTES);
    if (this.#tail.end + length > this.#fileBytes) {
      const next = this.#files.get(this.#current!.number + 1);
      assert(next !== undefined, "append is called only where there is room");
      this.#enter(next, false);
    }
    const entry = this.#current!;
    const position = this.position;
    const kind = source === undefined ? 1 : EXTENT_DATA;
    const record = { sequence: this.#sequence + 1, chain: this.#chain, epoch, lba, blockCount, kind };
    this.#chain = this.#tail.append(record, source, sourceAt);
    this.#sequence += 1;
    if (this.#unsyncedLast !== entry) this.#markUnsynced(entry);
    if (this.#tail.end * 4 > this.#fileBytes && !this.#files.has(entry.number + 1) && this.#mayRetry())
      this.#prepareNext();
    return source === undefined ? -position : position + head;
  }

  /**
   * Writes what was appended to the file: it survives the death of the process from then on. Throws "unavailable" when
   * the disk fails, now or before, and something could not be written.
   */
  commit(): void {
    this.#tail.write();
  }

  /**
   * Copies whole frames into `target`, verified ("corrupt"), sealed for the journal. Without `waits` it answers false, and
   * has put anything into `target`, where the disk would have to be waited for: warm() does that.
   */
  readFrames(position: number, lba: number, blockCount: number, target: Buffer, targetAt = 0, waits = true): boolean {
    const number = Math.floor(position / this.#fileBytes);
    const entry = this.#files.get(number);
    assert(entry !== undefined, "a position that is still needed was not released");
    const length = blockCount * RAW_FRAME_BYTES;
    const offset = position - number * this.#fileBytes;
    const bytes = target.subarray(targetAt, targetAt + length);
    if (entry === this.#current && !this.#tail.isWritten(offset + length)) this.#tail.read(offset, bytes);
    else if (!readFile(entry.file, bytes, offset, waits)) return false;
    for (let index = 0; index < blockCount; index += 1) {
      const seed = journalFrameSeed(this.#seed, position + index * RAW_FRAME_BYTES);
      if (!isIntactRawFrame(target, targetAt + index * RAW_FRAME_BYTES, lba + index, seed)) {
        throw new OperationError("corrupt", "the local journal is damaged: check this node's disk", {
          context: { file: journalFileName(number), position, lba: lba + index },
        });
      }
    }
    return true;
  }

  /**
   * Has the disk bring up to `blockCount` frames from `position` on into memory, as many as the file has; what goes wrong
   * is met by who reads them.
   */
  async warm(position: number, blockCount: number): Promise<void> {
    const entry = this.#files.get(Math.floor(position / this.#fileBytes));
    if (entry === undefined) return;
    const offset = position % this.#fileBytes;
    const length = Math.min(blockCount * RAW_FRAME_BYTES, this.#fileBytes - offset);
    await warmFile(entry.file, { offset, length }, () => this.#files.get(entry.number) === entry);
  }

  /**
   * Makes every record appended so far durable; undefined where all are. Rejects with "unavailable" once the disk has
   * failed a sync. Calls that come while one runs share the next, unless the running one covers them already.
   */
  sync(): Promise<void> | undefined {
    if (this.distrusted) return Promise.reject(distrust());
    if (this.#syncedPosition === this.position) return undefined;
    try {
      this.commit();
    } catch {
      return Promise.reject(this.#tail.failure ?? distrust());
    }
    if (this.#syncing === undefined) return this.#startSync();
    if (this.#syncingPosition === this.position) return this.#syncing;
    const again = async (): Promise<void> => {
      this.#nextSync = undefined;
      // Somebody else may have begun one meanwhile: sync() decides anew.
      await this.sync();
    };
    this.#nextSync ??= this.#syncing.then(again, again);
    return this.#nextSync;
  }

  /** Gives back all space below `position`: S3 holds it, and nothing reads it any more. */
  release(position: number): void {
    if (position > this.#released) this.#released = position;
    const oldestNeeded = Math.floor(this.#released / this.#fileBytes);
    const freed = [...this.#files.values()].filter((entry) => entry.number < oldestNeeded);
    if (freed.length === 0) {
      if (this.#roomWaiters.length > 0) this.#prepareNext();
      return;
    }
    for (const entry of freed) {
      this.#files.delete(entry.number);
      this.#unsynced.delete(entry);
      this.#readBack.delete(entry);
    }
    this.#spare.push(...freed);
    this.#prepareNext();
  }

  readonly #spare: JournalFile[] = [];

  /** Writes what was appended, where the disk takes it, and closes the files; does not sync. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    try {
      this.commit();
    } catch (error) {
      // Whoever appended it was told by a commit of his own, or never acknowledged it.
      this.#log.warn("the journal is closed without its last records", { operation: "close", error: describe(error) });
    }
    await this.#preparing;
    await Promise.allSettled([this.#syncing, this.#nextSync]);
    for (const entry of [...this.#files.values(), ...this.#spare, ...this.#found]) await entry.file.close();
    this.#wakeWaiters();
  }

  /** Removes every file of the journal: after the volume was closed with nothing left to upload. */
  async remove(): Promise<void> {
    await this.close();
    for (const name of await this.#disk.list()) if (name.endsWith(".journal")) await this.#disk.remove(name);
  }

  /** Sets what `files`, some of those found, hold aside: no recovery looks at it any more. Empty ones are not kept. */
  async #rename(files: readonly JournalFile[]): Promise<string[]> {
    const full = files.filter((entry) => entry.header !== undefined || entry.isDamaged === true);
    this.#found = this.#found.filter((entry) => !full.includes(entry));
    for (const entry of full) await entry.file.close();
    const named = full.map(({ number }) => ({ number, name: journalFileName(number) }));
    return await quarantine(this.#disk, named, this.#limitBytes);
  }

  /** Makes `entry` the file that records go to. */
  #enter(entry: JournalFile, begins: boolean): void {
    const header = {
      uid: this.#uid,
      journalId: this.#journalId,
      fileNumber: entry.number,
      firstSequence: this.#sequence + 1,
      chain: this.#chain,
      begins,
      fileBytes: this.#fileBytes,
    };
    this.commit();
    entry.header = header;
    entry.file.writeSync(encodeFileHeader(header), 0);
    this.#current = entry;
    this.#tail.enter(this.#placeOf(entry), FILE_HEADER_BYTES);
    this.#markUnsynced(entry);
  }

  #startSync(): Promise<void> {
    this.#syncingPosition = this.position;
    const syncing = this.#syncNow(this.position).finally(() => (this.#syncing = undefined));
    this.#syncing = syncing;
    return syncing;
  }

  #markUnsynced(entry: JournalFile): void {
    this.#unsynced.add(entry);
    this.#unsyncedLast = entry;
  }

  async #syncNow(position: number): Promise<void> {
    const files = [...this.#unsynced];
    this.#unsynced.clear();
    this.#unsyncedLast = undefined;
    try {
      for (const [entry, bytes] of this.#readBack) await this.#writeBack(entry, bytes);
      await Promise.all(files.map((entry) => entry.file.sync()));
      this.#syncedPosition = position;
    } catch (error) {
      this.#distrust(error);
      throw distrust();
    }
  }

  /**
   * Writes again what an earlier process, or an earlier opening, wrote: a sync of theirs may have failed, and then the
   * bytes count as clean, though the disk does not have them, and no later sync would write them.
   */
  async #writeBack(entry: JournalFile, bytes: number): Promise<void> {
    const buffer = Buffer.allocUnsafe(Math.min(bytes, WRITE_BACK_BYTES));
    for (let at = 0; at < bytes; at += buffer.length) {
      const piece = buffer.subarray(0, Math.min(buffer.length, bytes - at));
      await entry.file.read(piece, at);
      // Given back meanwhile: it holds other records by now.
      if (this.#readBack.get(entry) !== bytes) return;
      entry.file.writeSync(piece, at);
    }
    this.#readBack.delete(entry);
  }

  #distrust(error: unknown): void {
    this.distrusted = true;
    this.#log.error("the journal's disk failed a sync: flushes go to S3 from now on; move the volume to another node", {
      operation: "sync",
      error: describe(error),
    });
  }

  /** After a refusal by the disk, appends ask it again a sixteenth of a file later; those who wait for room, at once. */
  #mayRetry(): boolean {
    return this.#refusedAt === undefined || (this.position - this.#refusedAt) * 16 > this.#fileBytes;
  }

  /** Makes the file after the current one ready, in the background, where there is none and the limit allows it. */
  #prepareNext(): void {
    if (this.#preparing !== undefined || this.#closed || this.#current === undefined) return;
    const number = this.#current.number + 1;
    if (this.#files.has(number)) {
      this.#wakeWaiters();
      return;
    }
    if (
      this.#spare.length === 0 &&
      (this.#files.size + 1) * this.#fileBytes > this.#limitBytes &&
      !this.#retireCurrent()
    )
      return;
    this.#preparing = this.#prepare(number).finally(() => {
      this.#preparing = undefined;
      if (this.#files.has((this.#current?.number ?? 0) + 1)) this.#wakeWaiters();
    });
  }

  async #prepare(number: number): Promise<void> {
    let spare = this.#spare.shift();
    try {
      if (spare === undefined) {
        this.#files.set(number, { number, file: await this.#makeFile(number), header: undefined });
      } else {
        await this.#disk.rename(journalFileName(spare.number), journalFileName(number));
        spare = { ...spare, number };
        // The new name must be durable before the first byte is written over: under its old name and with its old
        // header, the file would break the chain of those behind it.
        await this.#disk.sync();
        this.#files.set(number, { number, file: spare.file, header: undefined });
        spare = undefined;
      }
      this.#refusedAt = undefined;
      await this.#trimSpares();
    } catch (error) {
      if (spare !== undefined) this.#spare.unshift(spare);
      if (this.#files.has(number)) return;
      const isNews = this.#refusedAt === undefined;
      this.#refusedAt = this.position;
      if (spare === undefined && this.#retireCurrent()) return await this.#prepare(number);
      if (!isNews) return;
      const level = isKind(error, "exhausted")
        ? "the journal's disk is full: writes wait until S3 has taken older ones"
        : "cannot make a journal file";
      this.#log.warn(level, { operation: "journal", error: describe(error) });
    }
  }

  /** A new file with all its space; nothing of it is left where the disk has no room. */
  async #makeFile(number: number): Promise<DiskFile> {
    const name = journalFileName(number);
    const file = await this.#disk.open(name, { create: true });
    try {
      await file.allocate(this.#fileBytes);
      await this.#disk.sync();
      return file;
    } catch (error) {
      await file.close();
      await this.#disk.remove(name).catch(() => undefined);
      throw error;
    }
  }

  /**
   * Where the disk has no room for another file and nothing in the current one is needed any more, the current one
   * itself becomes the spare: so one file alone is enough to go on for ever.
   */
  #retireCurrent(): boolean {
    const current = this.#current!;
    if (this.#roomWaiters.length === 0 || this.#released < this.position || !this.#files.has(current.number))
      return false;
    this.#tail.enter(this.#placeOf(current), this.#fileBytes);
    this.#released = this.position;
    this.#files.delete(current.number);
    this.#unsynced.delete(current);
    this.#readBack.delete(current);
    this.#spare.push(current);
    return true;
  }

  /** Spare files of a quarter of the limit are kept for the next burst, the others go back to the disk. */
  async #trimSpares(): Promise<void> {
    const kept = Math.max(1, Math.floor(this.#limitBytes / this.#fileBytes / 4));
    while (this.#spare.length > kept) await this.#discard([this.#spare.shift()!]);
  }

  async #discard(files: readonly JournalFile[]): Promise<void> {
    for (const entry of files) {
      await entry.file.close();
      await this.#disk.remove(journalFileName(entry.number));
    }
  }

  #wakeWaiters(): void {
    const waiters = this.#roomWaiters;
    this.#roomWaiters = [];
    for (const resume of waiters) resume();
  }
}

function distrust(): OperationError {
  return new OperationError("unavailable", "the journal's disk failed a sync and is not trusted any more");
}
