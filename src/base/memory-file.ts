/**
 * The content of one file of memory-disk.ts: what it holds, what of that is durable, and what a loss of power leaves.
 *
 * What stands in `pages` is what readers see. What a crash may go back to is kept for each sector that was changed since
 * it was last durable: in the batch of all that no sync covers yet, in those whose syncs run, or, where a sync has
 * failed, among the lost ones, which no later sync makes durable. Nothing is allocated for a sector or a write.
 */
import type { Random } from "./random.ts";

const SECTOR_BYTES = 512;
/** Space is counted in chunks of this size. */
const CHUNK_BYTES = 64 * 1024;
const PAGE_BYTES = 16 * 1024;
/** In place of an offset: the sector held zeroes. */
const ZEROES = -1;

/** Sectors in the order of their first change, and what each held before. */
class Batch {
  readonly sectors: number[] = [];
  /** For each: where its bytes stand in #bytes, or ZEROES. */
  readonly #offsets: number[] = [];
  #bytes = Buffer.alloc(0);
  #used = 0;

  /** Adds `count` sectors from `sector` on, which stand at `at` of `page`; undefined: they hold zeroes. */
  add(sector: number, count: number, page: Uint8Array | undefined, at = 0): void {
    for (let index = 0; index < count; index += 1) {
      this.sectors.push(sector + index);
      this.#offsets.push(page === undefined ? ZEROES : this.#used + index * SECTOR_BYTES);
    }
    if (page !== undefined) this.#copy(page, at, count * SECTOR_BYTES);
  }

  /** What the sector with that index held; undefined: zeroes. A view, valid until the next add(). */
  contentAt(index: number): Buffer | undefined {
    const offset = this.#offsets[index];
    return offset === ZEROES ? undefined : this.#bytes.subarray(offset, offset + SECTOR_BYTES);
  }

  /** What a sector held that is already here is replaced by what it held before that. */
  replace(index: number, content: Uint8Array | undefined): void {
    this.#offsets[index] = content === undefined ? ZEROES : this.#used;
    if (content !== undefined) this.#copy(content, 0, SECTOR_BYTES);
  }

  clear(): void {
    this.sectors.length = 0;
    this.#offsets.length = 0;
    this.#used = 0;
  }

  #copy(source: Uint8Array, at: number, length: number): void {
    if (this.#used + length > this.#bytes.length) {
      const wider = Buffer.allocUnsafe(Math.max(32 * SECTOR_BYTES, 2 * this.#bytes.length, this.#used + length));
      this.#bytes.copy(wider, 0, 0, this.#used);
      this.#bytes = wider;
    }
    this.#bytes.set(length === source.length ? source : source.subarray(at, at + length), this.#used);
    this.#used += length;
  }
}

export class MemoryFileContent {
  sizeBytes = 0;
  #durableSizeBytes = 0;
  /** Undefined: zeroes. */
  #pages: (Buffer | undefined)[] = [];
  /** Chunks that take up space. */
  readonly #allocated = new Set<number>();
  #unsynced = new Batch();
  /** For each sector: the last batch of #unsynced that it was in, by number. */
  #marks = new Uint32Array(128);
  #batchNumber = 1;
  /** Batches whose sync runs, oldest first. */
  #syncing: Batch[] = [];
  /** Kept for the next sync. */
  #spare: Batch | undefined;
  /** Sectors whose sync failed: a later sync does not write them. */
  readonly #lost = new Map<number, Buffer | undefined>();

  allocatedBytes(): number {
    return this.#allocated.size * CHUNK_BYTES;
  }

  /** How many bytes of new chunks writing [position, position + length) would take. */
  missingBytes(position: number, length: number): number {
    let bytes = 0;
    const last = Math.floor((position + length - 1) / CHUNK_BYTES);
    for (let chunk = Math.floor(position / CHUNK_BYTES); chunk <= last; chunk += 1) {
      if (!this.#allocated.has(chunk)) bytes += CHUNK_BYTES;
    }
    return bytes;
  }

  read(target: Uint8Array, position: number): void {
    for (let done = 0; done < target.length;) {
      const within = (position + done) % PAGE_BYTES;
      const step = Math.min(PAGE_BYTES - within, target.length - done);
      const page = this.#pages[Math.floor((position + done) / PAGE_BYTES)];
      if (page === undefined) target.fill(0, done, done + step);
      else page.copy(target, done, within, within + step);
      done += step;
    }
  }

  write(source: Uint8Array, position: number): void {
    this.#remember(Math.floor(position / SECTOR_BYTES), Math.ceil((position + source.length) / SECTOR_BYTES));
    this.#put(source, position);
    this.sizeBytes = Math.max(this.sizeBytes, position + source.length);
  }

  damage(bytes: Uint8Array, position: number): void {
    this.#put(bytes, position);
  }

  /** Zeroes to the new end, in chunks that count as allocated. */
  allocate(sizeBytes: number): void {
    for (let chunk = 0; chunk * CHUNK_BYTES < sizeBytes; chunk += 1) this.#allocated.add(chunk);
    this.sizeBytes = Math.max(this.sizeBytes, sizeBytes);
  }

  /** Takes what a sync that starts now covers; the answer ends it, well or not. */
  beginSync(): (succeeded: boolean) => void {
    const batch = this.#unsynced;
    const sizeBytes = this.sizeBytes;
    this.#unsynced = this.#spare ?? new Batch();
    this.#spare = undefined;
    this.#batchNumber += 1;
    this.#syncing.push(batch);
    return (succeeded) => {
      const index = this.#syncing.indexOf(batch);
      if (index < 0) return;
      if (succeeded) this.#durableSizeBytes = Math.max(this.#durableSizeBytes, sizeBytes);
      else this.#failed(batch, this.#syncing.slice(index + 1));
      this.#syncing.splice(index, 1);
      batch.clear();
      this.#spare = batch;
    };
  }

  /** Syncs of a process that has ended cover nothing any more. */
  reopen(): void {
    for (const batch of this.#syncing.splice(0).toReversed()) {
      for (const [index, sector] of batch.sectors.entries()) {
        const content = batch.contentAt(index);
        if (this.#marks[sector] === this.#batchNumber) {
          this.#unsynced.replace(this.#unsynced.sectors.indexOf(sector), content);
          continue;
        }
        this.#marks[sector] = this.#batchNumber;
        this.#unsynced.add(sector, 1, content);
      }
    }
  }

  crash(random: Random, keep: number): void {
    const end = random.fraction() < keep ? this.sizeBytes : this.#durableSizeBytes;
    for (const batch of [this.#unsynced, ...this.#syncing.toReversed()]) {
      for (let index = 0; index < batch.sectors.length; index += 1) {
        if (random.fraction() >= keep) this.#putBack(batch.sectors[index], batch.contentAt(index));
      }
    }
    for (const [sector, content] of this.#lost) if (random.fraction() >= keep) this.#putBack(sector, content);
    this.#unsynced.clear();
    this.#batchNumber += 1;
    this.#syncing = [];
    this.#lost.clear();
    this.#cut(end);
    this.sizeBytes = end;
    this.#durableSizeBytes = end;
  }

  /** Everything from `end` on is gone. */
  #cut(end: number): void {
    for (const chunk of this.#allocated) if (chunk * CHUNK_BYTES >= end) this.#allocated.delete(chunk);
    const pages = this.#pages;
    pages.length = Math.min(pages.length, Math.ceil(end / PAGE_BYTES));
    const rest = end % PAGE_BYTES;
    if (rest > 0) pages[Math.floor(end / PAGE_BYTES)]?.fill(0, rest);
  }

  /** The bytes before a failed sync stay what a crash goes back to, until they are written again and synced. */
  #failed(batch: Batch, later: readonly Batch[]): void {
    for (const [index, sector] of batch.sectors.entries()) {
      const content = batch.contentAt(index);
      const next = [...later, this.#unsynced].find(({ sectors }) => sectors.includes(sector));
      if (next === undefined) this.#lost.set(sector, content === undefined ? undefined : Buffer.from(content));
      else next.replace(next.sectors.indexOf(sector), content);
    }
  }

  /** Notes what the sectors [from, to) hold before their first change since the last sync began. */
  #remember(from: number, to: number): void {
    if (to > this.#marks.length) this.#widenMarks(to);
    const marks = this.#marks;
    for (let sector = from; sector < to;) {
      if (marks[sector] === this.#batchNumber) {
        sector += 1;
        continue;
      }
      // As many as lie in one page and are new here.
      const start = sector;
      const pageIndex = Math.floor((start * SECTOR_BYTES) / PAGE_BYTES);
      const pageEnd = Math.min(to, ((pageIndex + 1) * PAGE_BYTES) / SECTOR_BYTES);
      const isLost = this.#lost.has(sector);
      do {
        marks[sector] = this.#batchNumber;
        sector += 1;
      } while (!isLost && sector < pageEnd && marks[sector] !== this.#batchNumber && !this.#lost.has(sector));
      if (isLost) this.#takeLost(start);
      else this.#unsynced.add(start, sector - start, this.#pages[pageIndex], (start * SECTOR_BYTES) % PAGE_BYTES);
    }
  }

  #takeLost(sector: number): void {
    this.#unsynced.add(sector, 1, this.#lost.get(sector));
    this.#lost.delete(sector);
  }

  #widenMarks(sectors: number): void {
    const wider = new Uint32Array(Math.max(sectors, 2 * this.#marks.length));
    wider.set(this.#marks);
    this.#marks = wider;
  }

  #putBack(sector: number, content: Uint8Array | undefined): void {
    const position = sector * SECTOR_BYTES;
    if (content !== undefined) {
      this.#put(content, position);
      return;
    }
    this.#allocated.add(Math.floor(position / CHUNK_BYTES));
    const within = position % PAGE_BYTES;
    this.#pages[Math.floor(position / PAGE_BYTES)]?.fill(0, within, within + SECTOR_BYTES);
  }

  #put(source: Uint8Array, position: number): void {
    for (let done = 0; done < source.length;) {
      const index = Math.floor((position + done) / PAGE_BYTES);
      const within = (position + done) % PAGE_BYTES;
      const step = Math.min(PAGE_BYTES - within, source.length - done);
      let page = this.#pages[index];
      if (page === undefined) {
        page = step === PAGE_BYTES ? Buffer.allocUnsafeSlow(PAGE_BYTES) : Buffer.alloc(PAGE_BYTES);
        this.#pages[index] = page;
        this.#allocated.add(Math.floor((position + done) / CHUNK_BYTES));
      }
      page.set(step === source.length ? source : source.subarray(done, done + step), within);
      done += step;
    }
  }
}
