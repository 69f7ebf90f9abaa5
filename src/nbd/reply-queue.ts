/**
 * Replies on their way to the socket. A reply's place is reserved before its request runs, so that a read fills its
 * payload where it will be sent from; replies are sent in the order in which they are committed, neighbours as one
 * piece. Reserved and never committed places (a failed read's) are simply skipped.
 *
 * Invariant: between reserve and commit or cancel the caller holds a reference to the slab.
 */
import type { Connection } from "./connection.ts";
import type { Slab, SlabAccount } from "./slab-pool.ts";

/** Replies of one receive event mostly fit into one slab of this size, and so go out by one plain write. */
const REPLY_SLAB_BYTES = 256 * 1024;

class Segment {
  slab: Slab | undefined;
  start = 0;
  end = 0;
  readonly #queue: ReplyQueue;
  readonly written: () => void;

  constructor(queue: ReplyQueue) {
    this.#queue = queue;
    this.written = () => this.#queue.segmentWritten(this);
  }
}

export class ReplyQueue {
  readonly #account: SlabAccount;
  readonly #connection: Connection;
  readonly #onWritten: () => void;
  /** Where new replies are laid out. */
  #slab: Slab | undefined;
  #position = 0;
  #reserved = 0;
  readonly #segments: Segment[] = [];
  readonly #spare: Segment[] = [];
  #waitingBytes = 0;
  #sendingBytes = 0;

  /** `onWritten` is called whenever bytes have left for the kernel. */
  constructor(account: SlabAccount, connection: Connection, onWritten: () => void) {
    this.#account = account;
    this.#connection = connection;
    this.#onWritten = onWritten;
  }

  /** Bytes committed and not yet given to the connection. */
  get waitingBytes(): number {
    return this.#waitingBytes;
  }

  /** Bytes committed and not yet taken by the kernel. */
  get queuedBytes(): number {
    return this.#waitingBytes + this.#sendingBytes;
  }

  /** The slab of the place reserved last. */
  get reservedSlab(): Slab {
    return this.#slab as Slab;
  }

  /** Start of the place reserved last. */
  get reservedStart(): number {
    return this.#reserved;
  }

  /** Reserves `length` bytes from reservedStart on in the slab answered, with a reference for the caller. */
  reserve(length: number): Slab {
    let slab = this.#slab;
    if (slab !== undefined && slab.exclusive && this.#segments.length === 0) this.#position = 0;
    if (slab === undefined || this.#position + length > slab.buffer.length) {
      slab?.release();
      slab = this.#account.take(Math.max(REPLY_SLAB_BYTES, length));
      this.#slab = slab;
      this.#position = 0;
    }
    slab.retain();
    this.#reserved = this.#position;
    this.#position += length;
    return slab;
  }

  /** Queues a reserved place, or its beginning, and takes the caller's reference. */
  commit(slab: Slab, start: number, length: number): void {
    this.#waitingBytes += length;
    const last = this.#segments.at(-1);
    if (last !== undefined && last.slab === slab && last.end === start) {
      last.end += length;
      slab.release();
      return;
    }
    const segment = this.#spare.pop() ?? new Segment(this);
    segment.slab = slab;
    segment.start = start;
    segment.end = start + length;
    this.#segments.push(segment);
  }

  /** Gives everything committed to the connection, by one system call where the socket takes it. */
  flush(): void {
    const count = this.#segments.length;
    if (count === 0) return;
    if (count === 1 && this.#sendNow(this.#segments[0])) return;
    this.#sendingBytes += this.#waitingBytes;
    this.#waitingBytes = 0;
    if (count > 1) this.#connection.cork();
    for (const segment of this.#segments) {
      const { buffer } = segment.slab as Slab;
      this.#connection.write(buffer.subarray(segment.start, segment.end), segment.written);
    }
    this.#segments.length = 0;
    if (count > 1) this.#connection.uncork();
  }

  segmentWritten(segment: Segment): void {
    this.#sendingBytes -= segment.end - segment.start;
    this.#put(segment);
    this.#onWritten();
  }

  /** Past the connection's queue: true when the kernel has taken all of the only segment, else what it took is cut off. */
  #sendNow(segment: Segment): boolean {
    const { buffer } = segment.slab as Slab;
    const taken = this.#connection.writeNow(buffer.subarray(segment.start, segment.end));
    this.#waitingBytes -= taken;
    segment.start += taken;
    if (segment.start < segment.end) return false;
    this.#segments.length = 0;
    this.#put(segment);
    return true;
  }

  /** The segment has been sent: it, its memory and that of an idle connection may be used again. */
  #put(segment: Segment): void {
    segment.slab?.release();
    segment.slab = undefined;
    this.#spare.push(segment);
    if (this.queuedBytes === 0 && this.#slab?.exclusive === true) this.#releaseSlab();
  }

  /** Lets go of what was not given to the connection, and of the spare slab. */
  discard(): void {
    for (const segment of this.#segments) segment.slab?.release();
    this.#segments.length = 0;
    this.#waitingBytes = 0;
    this.#releaseSlab();
  }

  /** An idle connection holds no reply memory. */
  #releaseSlab(): void {
    this.#slab?.release();
    this.#slab = undefined;
  }
}
