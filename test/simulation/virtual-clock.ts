/**
 * A clock whose time passes only when nothing else is left to do: timers fire in order of their time, one per turn of
 * the event loop, so that everything a timer sets off by promises has run before the next one fires. With stores and
 * disks in memory, the same program takes the same steps every time.
 *
 * Timers of one moment fire in the order in which they were set, or, where a Random is given, in an order drawn from
 * it. It never reads the machine's clock.
 */
import type { Clock, Timer } from "../../src/base/clock.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";

interface Entry {
  timeMs: number;
  tie: number;
  order: number;
  fire: (() => void) | undefined;
}

export interface VirtualClockOptions {
  /** Draws the order of timers of one moment. */
  random?: SeededRandom;
  /** Called when no timer is left: whoever still waits will wait for ever. */
  idle?: () => void;
  /** Called before each timer fires, with the number of those that fired before. */
  beforeEach?: (fired: number) => void;
}

/** Turns that may be queued in the event loop at a time: fewer system calls, the same order. */
const BATCH = 32;

export class VirtualClock implements Clock {
  #nowMs = 0;
  #order = 0;
  #fired = 0;
  /** A binary heap, the next timer first. */
  readonly #heap: Entry[] = [];
  #live = 0;
  #queuedTurns = 0;
  #stopped = false;
  readonly #options: VirtualClockOptions;
  readonly #turnLater = (): void => this.#turn();

  constructor(options: VirtualClockOptions = {}) {
    this.#options = options;
  }

  now(): number {
    return 1_700_000_000_000 + Math.floor(this.#nowMs);
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (signal === undefined) return new Promise((resolve) => this.after(ms, resolve));
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason as Error);
        return;
      }
      const abort = (): void => {
        timer.cancel();
        reject(signal.reason as Error);
      };
      const timer = this.after(ms, () => {
        signal.removeEventListener("abort", abort);
        resolve();
      });
      signal.addEventListener("abort", abort, { once: true });
    });
  }

  after(ms: number, callback: () => void): Timer {
    const tie = this.#options.random?.uint32() ?? 0;
    const entry: Entry = { timeMs: this.#nowMs + Math.max(0, ms), tie, order: this.#order++, fire: callback };
    this.#push(entry);
    this.#live += 1;
    this.#queueTurn();
    return {
      cancel: () => {
        if (entry.fire === undefined) return;
        entry.fire = undefined;
        this.#live -= 1;
      },
    };
  }

  /** No timer fires any more. */
  stop(): void {
    this.#stopped = true;
  }

  yield(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }

  /** Lets everything run that needs no time to pass. */
  async settle(turns = 20): Promise<void> {
    for (let turn = 0; turn < turns; turn += 1) await this.yield();
  }

  #queueTurn(): void {
    if (this.#queuedTurns > 0) return;
    this.#queuedTurns = 1;
    setImmediate(this.#turnLater);
  }

  #turn(): void {
    this.#queuedTurns -= 1;
    if (this.#stopped) return;
    const next = this.#pop();
    if (next === undefined) {
      if (this.#queuedTurns === 0) this.#options.idle?.();
      return;
    }
    this.#nowMs = Math.max(this.#nowMs, next.timeMs);
    const fire = next.fire!;
    next.fire = undefined;
    this.#live -= 1;
    if (this.#queuedTurns === 0) this.#queueMore();
    this.#options.beforeEach?.(this.#fired);
    this.#fired += 1;
    fire();
  }

  /** Without ties drawn at random, other work of the event loop gets a turn between any two timers. */
  #queueMore(): void {
    if (this.#options.random === undefined) {
      this.#queuedTurns = 1;
      setImmediate(() => setImmediate(this.#turnLater));
      return;
    }
    this.#queuedTurns = BATCH;
    for (let turn = 0; turn < BATCH; turn += 1) setImmediate(this.#turnLater);
  }

  #push(entry: Entry): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(entry);
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      if (!isBefore(entry, heap[parent])) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = entry;
  }

  /** The next timer that was not cancelled. */
  #pop(): Entry | undefined {
    if (this.#live === 0) this.#heap.length = 0;
    for (;;) {
      const entry = this.#popAny();
      if (entry === undefined || entry.fire !== undefined) return entry;
    }
  }

  #popAny(): Entry | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1], heap[child])) child += 1;
      if (!isBefore(heap[child], last)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isBefore(left: Entry, right: Entry): boolean {
  if (left.timeMs !== right.timeMs) return left.timeMs < right.timeMs;
  if (left.tie !== right.tie) return left.tie < right.tie;
  return left.order < right.order;
}
