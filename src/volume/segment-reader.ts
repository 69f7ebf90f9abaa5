/**
 * Reads stored bytes of a volume's immutable objects: from the block cache, else from S3 in parts of 64 KiB that fill
 * the cache on the way. One reader a volume; cache and budget are shared by the volumes of a thread.
 *
 * - Single flight: a part is fetched once, however many ask for it. Parts of one object asked for in one turn of the
 *   event loop are fetched by one GET where at most 256 KiB lie between them (what lies between is cached too).
 * - The length of every body is verified. Whether the bytes are right is decided by the caller, who knows the
 *   checksums of frames and heads; where they do not match, refetch() reads past the cache, twice at most.
 * - What is fetched counts against the budget until its memory is free again. Bodies are freed by hand as soon as they
 *   were copied: as garbage they took 20 to 45 MiB more, until somebody collected it (decision 0112).
 * - Nothing is fetched ahead that nobody asked for: readahead.ts decides, prefetch() fetches, and only while half of
 *   the budget stays free for those who wait.
 * Time-outs and retries are the store's; the reader waits until its signal aborts.
 */
import { assert } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import { asOperationError, describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { ObjectStore } from "../store/object-store.ts";
import type { BlockCache } from "./block-cache.ts";
import { type ObjectIdentity, PART_BYTES } from "./cache-index.ts";
import type { ReadBudget } from "./read-budget.ts";

/** An object as the reader needs it: where it is, and who it is. */
export interface StoredObject extends ObjectIdentity {
  readonly key: string;
}

export interface SegmentReaderOptions {
  store: ObjectStore;
  cache: BlockCache;
  budget: ReadBudget;
  clock: Clock;
  log: Log;
  /** Ends every request with "unavailable" when it aborts: the volume is closing. */
  signal?: AbortSignal;
}

export interface SegmentReaderStats {
  gets: number;
  getBytes: number;
  /** Parts somebody waited for that were on their way already. */
  joinedParts: number;
  prefetchedBytes: number;
  /** Readahead given up because the budget was taken. */
  skippedBytes: number;
  refetches: number;
}

const MAX_GAP_PARTS = 4;
const MAX_GET_PARTS = 32;
const ADMIT_STEP_PARTS = 16;
/**
 * So long an uploaded object may keep memory from the next upload, and so often that is asked while the cache's disk takes
 * nothing.
 */
const MAX_HELD_MS = 250;
/** Before a body that was wrong twice is fetched for the last time. */
const REFETCH_PAUSE_MS = 100;

/** A part on its way. */
interface Flight {
  readonly part: number;
  /** False while only readahead wants it. */
  demanded: boolean;
  readonly bytes: Promise<Buffer>;
  readonly land: (bytes: Buffer) => void;
  readonly crash: (error: OperationError) => void;
}

/** The flights of one object; `waiting` ones have not been put into a GET yet. */
interface Traffic {
  readonly object: StoredObject;
  readonly flights: Map<number, Flight>;
  waiting: Flight[];
}

export class SegmentReader {
  readonly #store: ObjectStore;
  readonly #cache: BlockCache;
  readonly #budget: ReadBudget;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #signal: AbortSignal | undefined;
  readonly #traffic = new Map<string, Traffic>();
  /** Bodies on their way into the cache, by key: served from memory meanwhile. */
  readonly #admitted = new Map<string, Buffer>();
  readonly #counts = { gets: 0, getBytes: 0, joinedParts: 0, prefetchedBytes: 0, skippedBytes: 0, refetches: 0 };

  constructor(options: SegmentReaderOptions) {
    this.#store = options.store;
    this.#cache = options.cache;
    this.#budget = options.budget;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#signal = options.signal;
  }

  /**
   * The hot path, for a frame: fills `target` at once where it is cached and in memory. The bytes were compared with
   * nothing: the caller checks the frame's own checksum, which is bound to the object, and calls refetch() where it does
   * not match. False: call fetch().
   */
  readFrameSync(object: StoredObject, offset: number, target: Buffer): boolean {
    if (this.#admitted.size > 0 && this.#readAdmitted(object, offset, target)) return true;
    return !this.#cache.readsAreSlow() && this.#cache.readSync(object, offset, target);
  }

  /**
   * Stored bytes [offset, offset + length) of `object`, at once where they are cached, compared with nothing either.
   * Throws or rejects with "corrupt" where the object is missing or ends before; "unavailable" when the signal aborts.
   */
  read(object: StoredObject, offset: number, length: number): Buffer | Promise<Buffer> {
    assert(length > 0 && offset >= 0, "a read has bytes");
    const target = Buffer.allocUnsafe(length);
    if (this.#admitted.size > 0 && this.#readAdmitted(object, offset, target)) return target;
    if (!this.#cache.readsAreSlow() && this.#cache.readSync(object, offset, target)) return target;
    return this.#readParts(object, offset, target);
  }

  /** The same for who has called readFrameSync, and waits for the disk or S3 now. */
  fetch(object: StoredObject, offset: number, length: number): Promise<Buffer> {
    return this.#readParts(object, offset, Buffer.allocUnsafe(length));
  }

  /**
   * Drops the range from the cache and reads it from S3 again, whatever is cached or on its way: for bytes whose
   * checksum did not match; `isRight` is asked about what comes. Where it does not match three times in all, the object
   * itself is corrupt: the last bytes are answered.
   */
  async refetch(
    object: StoredObject,
    offset: number,
    length: number,
    isRight: (bytes: Buffer) => boolean,
  ): Promise<Buffer> {
    const bytes = await this.#refetchOnce(object, offset, length);
    if (isRight(bytes)) return bytes;
    await this.#clock.sleep(REFETCH_PAUSE_MS, this.#signal);
    return await this.#refetchOnce(object, offset, length);
  }

  async #refetchOnce(object: StoredObject, offset: number, length: number): Promise<Buffer> {
    this.#counts.refetches += 1;
    this.#cache.drop(object, offset, length);
    const target = Buffer.allocUnsafe(length);
    const last = Math.floor((offset + length - 1) / PART_BYTES);
    for (let part = Math.floor(offset / PART_BYTES); part <= last; part += MAX_GET_PARTS) {
      const count = Math.min(MAX_GET_PARTS, last - part + 1);
      const body = await this.#fetch(object, part, count, true);
      try {
        for (let next = part; next < part + count; next += 1) {
          const bytes = partOf(body, next - part);
          copyPart(object, next, bytes, { target, offset });
          this.#cache.insert(object, next, bytes);
        }
      } finally {
        this.#free(body, count);
      }
    }
    return target;
  }

  /** Begins to fetch what of the range is not cached. Errors are nobody's: whoever reads the range will meet them. */
  prefetch(object: StoredObject, offset: number, length: number): void {
    if (length <= 0 || this.#cache.stats().state === "off") return;
    const traffic = this.#trafficOf(object);
    for (let part = Math.floor(offset / PART_BYTES); part * PART_BYTES < offset + length; part += 1) {
      if (!traffic.flights.has(part) && !this.#cache.has(object, part)) this.#takeOff(traffic, part, false);
    }
    this.#leave(traffic);
  }

  /**
   * Puts an object that was just uploaded into the cache, a MiB at a time and as fast as the cache's disk takes it; it
   * is read from `body`, which is borrowed until the promise resolves, meanwhile. Where `isWanted` says that its memory
   * is needed, what the disk has not taken after a quarter of a second is left out, and so is what it has not taken when
   * the signal aborts: also a disk that hangs gives the memory back.
   */
  async admit(object: StoredObject, body: Buffer, isWanted: () => boolean): Promise<void> {
    if (this.#cache.stats().state === "off") return;
    this.#admitted.set(object.key, body);
    const startedMs = this.#clock.monotonicMs();
    try {
      for (let part = 0; part * PART_BYTES < body.length; part += 1) {
        for (let room = this.#cache.room(); room !== undefined;) {
          if (this.#signal?.aborted === true) return;
          if (isWanted() && this.#clock.monotonicMs() - startedMs > MAX_HELD_MS) return;
          if (await this.#comesSoon(room)) room = this.#cache.room();
        }
        if (!this.#cache.insert(object, part, partOf(body, part))) return;
        if (part % ADMIT_STEP_PARTS === ADMIT_STEP_PARTS - 1) await this.#clock.yield();
      }
    } finally {
      this.#admitted.delete(object.key);
    }
  }

  /** True when `room` has come, false where it has not after a quarter of a second. */
  #comesSoon(room: Promise<void>): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = this.#clock.after(MAX_HELD_MS, () => resolve(false));
      void room.then(() => {
        timer.cancel();
        resolve(true);
      });
    });
  }

  stats(): SegmentReaderStats {
    return { ...this.#counts };
  }

  #readAdmitted(object: StoredObject, offset: number, target: Buffer): boolean {
    const body = this.#admitted.get(object.key);
    if (body === undefined || offset + target.length > body.length) return false;
    body.copy(target, 0, offset, offset + target.length);
    return true;
  }

  async #readParts(object: StoredObject, offset: number, target: Buffer): Promise<Buffer> {
    const traffic = this.#trafficOf(object);
    const waits: Promise<void>[] = [];
    for (let done = 0; done < target.length;) {
      const part = Math.floor((offset + done) / PART_BYTES);
      const within = offset + done - part * PART_BYTES;
      const step = Math.min(PART_BYTES - within, target.length - done);
      const piece = target.subarray(done, done + step);
      if (this.#cache.has(object, part)) waits.push(this.#readCached(traffic, offset + done, piece));
      else waits.push(this.#fly(traffic, part, offset + done, piece));
      done += step;
    }
    this.#leave(traffic);
    await Promise.all(waits);
    return target;
  }

  /** A cached piece of one part, off the thread; from S3 where it turns out not to be there after all. */
  async #readCached(traffic: Traffic, offset: number, piece: Buffer): Promise<void> {
    if (await this.#cache.read(traffic.object, offset, piece)) return;
    const current = this.#trafficOf(traffic.object);
    const flown = this.#fly(current, Math.floor(offset / PART_BYTES), offset, piece);
    this.#leave(current);
    await flown;
  }

  /** Fills `piece`, which lies in one part, when the part has come. */
  async #fly(traffic: Traffic, part: number, offset: number, piece: Buffer): Promise<void> {
    let flight = traffic.flights.get(part);
    if (flight === undefined) {
      flight = this.#takeOff(traffic, part, true);
    } else {
      flight.demanded = true;
      this.#counts.joinedParts += 1;
    }
    copyPart(traffic.object, part, await flight.bytes, { target: piece, offset });
  }

  #trafficOf(object: StoredObject): Traffic {
    let traffic = this.#traffic.get(object.key);
    if (traffic === undefined) {
      traffic = { object, flights: new Map(), waiting: [] };
      this.#traffic.set(object.key, traffic);
    }
    return traffic;
  }

  #takeOff(traffic: Traffic, part: number, demanded: boolean): Flight {
    const flight = newFlight(part, demanded);
    traffic.flights.set(part, flight);
    traffic.waiting.push(flight);
    if (traffic.waiting.length === 1) queueMicrotask(() => this.#depart(traffic));
    return flight;
  }

  /** Ends the books of an object that nothing is on its way from. */
  #leave(traffic: Traffic): void {
    const { key } = traffic.object;
    if (traffic.flights.size === 0 && this.#traffic.get(key) === traffic) this.#traffic.delete(key);
  }

  /**
   * Puts everything that was asked for in this turn into as few GETs as the rules allow. Readahead rides along where
   * it lies between what is waited for; the rest of it comes after and never makes a GET longer that somebody awaits.
   */
  #depart(traffic: Traffic): void {
    const waiting = new Set(traffic.waiting);
    traffic.waiting = [];
    const aboard = new Set<number>();
    for (const demanded of [true, false]) {
      const parts = [...waiting].flatMap((flight) =>
        flight.demanded === demanded && !aboard.has(flight.part) ? [flight.part] : [],
      );
      for (const { first, last } of groupParts(parts)) {
        const flights: Flight[] = [];
        for (let part = first; part <= last; part += 1) {
          let flight = traffic.flights.get(part);
          if (aboard.has(part) || (flight !== undefined && !waiting.has(flight))) continue;
          aboard.add(part);
          flight ??= newFlight(part, false);
          traffic.flights.set(part, flight);
          flights.push(flight);
        }
        void this.#carry(traffic, flights);
      }
    }
  }

  /** One GET for `flights`, and for the parts between them. Rejects only for a bug. */
  async #carry(traffic: Traffic, flights: Flight[]): Promise<void> {
    const start = flights[0].part;
    const count = flights[flights.length - 1].part - start + 1;
    const demanded = flights.some((flight) => flight.demanded);
    const body = await this.#fetch(traffic.object, start, count, demanded).catch((error: unknown) =>
      asOperationError(error, "unavailable", "cannot read the object"),
    );
    for (const flight of flights) traffic.flights.delete(flight.part);
    this.#leave(traffic);
    if (body instanceof OperationError) {
      if (!demanded) this.#log.debug("readahead failed", { key: traffic.object.key, error: describe(body) });
      for (const flight of flights) flight.crash(body);
      return;
    }
    try {
      for (const flight of flights) flight.land(partOf(body, flight.part - start));
      for (let part = start; part < start + count; part += 1) {
        this.#cache.insert(traffic.object, part, partOf(body, part - start));
      }
      // Those who wait for a flight copy it in this turn.
      await this.#clock.yield();
    } finally {
      this.#free(body, count);
    }
  }

  /**
   * One GET within the budget; where nobody waits for it, only while half of the budget stays free. What it answers is given
   * to #free() afterwards.
   */
  async #fetch(object: StoredObject, part: number, count: number, demanded: boolean): Promise<Buffer> {
    const bytes = count * PART_BYTES;
    if (!demanded) {
      if (!this.#budget.tryAcquire(bytes, this.#budget.totalBytes / 2)) {
        this.#counts.skippedBytes += bytes;
        throw new OperationError("unavailable", "the budget of reads is taken");
      }
      this.#counts.prefetchedBytes += bytes;
    } else if (!this.#budget.tryAcquire(bytes)) {
      await this.#budget.acquire(bytes, this.#signal);
    }
    try {
      return await this.#get(object, part, count);
    } catch (error) {
      this.#budget.release(bytes);
      throw error;
    }
  }

  /** Gives memory and budget of a body of `count` parts back; nothing may look at it any more. */
  #free(body: Buffer, count: number): void {
    // A part of a larger piece of memory is not ours alone.
    if (body.length === body.buffer.byteLength && body.buffer instanceof ArrayBuffer) body.buffer.transfer(0);
    this.#budget.release(count * PART_BYTES);
  }

  /** The parts [part, part + count) of the object: all their bytes, fewer only where the object ends. */
  async #get(object: StoredObject, part: number, count: number): Promise<Buffer> {
    if (this.#signal?.aborted === true) throw new OperationError("unavailable", "the volume is closing");
    const range = { offset: part * PART_BYTES, length: count * PART_BYTES };
    this.#counts.gets += 1;
    const verify = (bytes: Buffer, totalBytes: number): void => {
      const expected = Math.min(range.length, Math.max(0, totalBytes - range.offset));
      if (bytes.length !== expected) throw corrupt("the store sent a short body", object, range.offset);
    };
    const options = this.#signal === undefined ? { verify } : { signal: this.#signal, verify };
    const answer = await this.#store.getRange(object.key, range, options);
    if (answer === undefined) throw corrupt("an object that the map refers to is missing", object, range.offset);
    verify(answer.bytes, answer.totalBytes);
    this.#counts.getBytes += answer.bytes.length;
    return answer.bytes;
  }
}

function newFlight(part: number, demanded: boolean): Flight {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  // Readahead that fails has nobody who would hear of it.
  promise.catch(() => {});
  return { part, demanded, bytes: promise, land: resolve, crash: reject };
}

/** Runs of parts, at most MAX_GET_PARTS long, that are worth one GET each. */
function groupParts(parts: readonly number[]): { first: number; last: number }[] {
  const groups: { first: number; last: number }[] = [];
  for (const part of parts.toSorted((left, right) => left - right)) {
    const group = groups.at(-1);
    const near = group !== undefined && part - group.last - 1 <= MAX_GAP_PARTS;
    if (near && part - group.first < MAX_GET_PARTS) group.last = part;
    else groups.push({ first: part, last: part });
  }
  return groups;
}

function corrupt(message: string, object: StoredObject, offset: number): OperationError {
  return new OperationError("corrupt", message, { context: { key: object.key, offset } });
}

function partOf(body: Buffer, index: number): Buffer {
  return body.subarray(index * PART_BYTES, (index + 1) * PART_BYTES);
}

/** Copies what of the part lies in the range that `target` has from `offset`. */
function copyPart(object: StoredObject, part: number, bytes: Buffer, into: { target: Buffer; offset: number }): void {
  const { target, offset } = into;
  const from = Math.max(offset, part * PART_BYTES);
  const to = Math.min(offset + target.length, (part + 1) * PART_BYTES);
  if (to - part * PART_BYTES > bytes.length) {
    throw corrupt("an object ends before the bytes that the map refers to", object, from);
  }
  bytes.copy(target, from - offset, from - part * PART_BYTES, to - part * PART_BYTES);
}
