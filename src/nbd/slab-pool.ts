/**
 * Memory for requests and replies: slabs, counted by references and kept for reuse, since allocating (and faulting in)
 * a megabyte costs as much as moving it. Two parts: SlabPool is one per thread, bounds what all its connections hold and
 * keeps free slabs; SlabAccount is one per connection and counts what that one holds.
 *
 * Invariant: a slab returns to the pool when nobody refers to it, so memory lent to a device or a socket is never
 * given to another request before they have returned it.
 */
import { assert } from "../base/assert.ts";

const SMALLEST_CLASS_BITS = 16;
const LARGEST_CLASS_BITS = 26;
/** Beyond the power of two, so that a payload of a power of two fits its class together with its headers. */
const HEADROOM_BYTES = 4096;

export class Slab {
  readonly buffer: Buffer;
  /** The same bytes. */
  readonly view: DataView;
  readonly classBits: number;
  #references = 0;
  #account: SlabAccount | undefined;

  constructor(classBits: number) {
    this.classBits = classBits;
    this.buffer = Buffer.allocUnsafeSlow(2 ** classBits + HEADROOM_BYTES);
    this.view = new DataView(this.buffer.buffer, this.buffer.byteOffset, this.buffer.length);
  }

  /** True when the caller, who holds a reference, is the only one. */
  get exclusive(): boolean {
    return this.#references === 1;
  }

  assign(account: SlabAccount): void {
    assert(this.#references === 0, "a slab in use was taken");
    this.#account = account;
    this.#references = 1;
  }

  retain(): void {
    this.#references += 1;
  }

  release(): void {
    this.#references -= 1;
    if (this.#references > 0) return;
    assert(this.#references === 0, "a slab was released twice");
    const account = this.#account;
    this.#account = undefined;
    account?.returned(this);
  }
}

export interface SlabPoolOptions {
  /** Slabs in use at which `full` is true. Default 256 MiB. */
  limitBytes?: number;
  /** Free slabs kept for reuse; what exceeds it goes to the garbage collector. Default 32 MiB. */
  keptLimitBytes?: number;
}

export class SlabPool {
  readonly #free: Slab[][] = [];
  readonly #limitBytes: number;
  readonly #keptLimitBytes: number;
  readonly #waiters = new Set<() => void>();
  #keptBytes = 0;
  #usedBytes = 0;

  constructor(options: SlabPoolOptions = {}) {
    this.#limitBytes = options.limitBytes ?? 256 * 1024 * 1024;
    this.#keptLimitBytes = options.keptLimitBytes ?? 32 * 1024 * 1024;
    for (let bits = 0; bits <= LARGEST_CLASS_BITS; bits += 1) this.#free.push([]);
  }

  /** Bytes of free slabs held for reuse. */
  get keptBytes(): number {
    return this.#keptBytes;
  }

  /** Bytes of slabs in use. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** True when no connection should start a request that another one of its own does not wait for. */
  get full(): boolean {
    return this.#usedBytes >= this.#limitBytes;
  }

  /** Calls `waiter` once, in a turn of its own, when the pool is not full any more. */
  whenRoom(waiter: () => void): void {
    this.#waiters.add(waiter);
  }

  /** A slab of at least `minimumBytes`, without references. */
  take(minimumBytes: number): Slab {
    let bits = SMALLEST_CLASS_BITS;
    while (2 ** bits + HEADROOM_BYTES < minimumBytes) bits += 1;
    assert(bits <= LARGEST_CLASS_BITS, "a slab larger than any request was asked for");
    const free = this.#free[bits].pop();
    const slab = free ?? new Slab(bits);
    if (free !== undefined) this.#keptBytes -= free.buffer.length;
    this.#usedBytes += slab.buffer.length;
    return slab;
  }

  put(slab: Slab): void {
    this.#usedBytes -= slab.buffer.length;
    if (this.#waiters.size > 0 && !this.full) {
      for (const waiter of this.#waiters) queueMicrotask(waiter);
      this.#waiters.clear();
    }
    if (this.#keptBytes + slab.buffer.length > this.#keptLimitBytes) return;
    this.#keptBytes += slab.buffer.length;
    this.#free[slab.classBits].push(slab);
  }
}

export class SlabAccount {
  readonly #pool: SlabPool;
  #heldBytes = 0;

  constructor(pool: SlabPool) {
    this.#pool = pool;
  }

  /** The pool behind the account. */
  get pool(): SlabPool {
    return this.#pool;
  }

  /** Bytes of all slabs this account has out: for receiving, in requests, in replies not yet sent. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** A slab of at least `minimumBytes`; the caller holds its first reference. */
  take(minimumBytes: number): Slab {
    const slab = this.#pool.take(minimumBytes);
    slab.assign(this);
    this.#heldBytes += slab.buffer.length;
    return slab;
  }

  returned(slab: Slab): void {
    this.#heldBytes -= slab.buffer.length;
    this.#pool.put(slab);
  }
}
