/** A clock whose sleeps end at once and move its time forward: waits without waiting. Timers fire when time passes them. */
import type { Clock, Timer } from "../../src/base/clock.ts";

export class HurriedClock implements Clock {
  #nowMs = 0;
  readonly #timers = new Set<{ atMs: number; callback: () => void }>();
  /** Every sleep, in milliseconds, in order. */
  readonly slept: number[] = [];

  now(): number {
    return 1_700_000_000_000 + this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    this.slept.push(ms);
    this.advance(ms);
    await this.yield();
    signal?.throwIfAborted();
  }

  after(ms: number, callback: () => void): Timer {
    const timer = { atMs: this.#nowMs + ms, callback };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }

  yield(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }

  /** Moves time forward and fires what is due, in order. */
  advance(ms: number): void {
    this.#nowMs += ms;
    const due = [...this.#timers].filter((timer) => timer.atMs <= this.#nowMs);
    for (const timer of due.toSorted((left, right) => left.atMs - right.atMs)) {
      if (this.#timers.delete(timer)) timer.callback();
    }
  }
}
