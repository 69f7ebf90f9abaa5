/**
 * A clock whose time passes only when nothing else is left to do: timers fire in order of their time, one per turn of
 * the event loop, so that everything a timer sets off by promises has run before the next one fires. With stores and
 * disks in memory, the same program takes the same steps every time.
 */
import type { Clock, Timer } from "../../src/base/clock.ts";

interface Entry {
  timeMs: number;
  order: number;
  fire: () => void;
}

export class VirtualClock implements Clock {
  #nowMs = 0;
  #order = 0;
  #entries: Entry[] = [];
  #running = false;

  now(): number {
    return 1_700_000_000_000 + Math.floor(this.#nowMs);
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(signal.reason as Error);
        return;
      }
      const timer = this.after(ms, resolve);
      signal?.addEventListener(
        "abort",
        () => {
          timer.cancel();
          reject(signal.reason as Error);
        },
        { once: true },
      );
    });
  }

  after(ms: number, callback: () => void): Timer {
    const entry: Entry = { timeMs: this.#nowMs + Math.max(0, ms), order: this.#order++, fire: callback };
    this.#entries.push(entry);
    this.#run();
    return { cancel: () => (this.#entries = this.#entries.filter((other) => other !== entry)) };
  }

  yield(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }

  /** Lets everything run that needs no time to pass. */
  async settle(turns = 20): Promise<void> {
    for (let turn = 0; turn < turns; turn += 1) await this.yield();
  }

  #run(): void {
    if (this.#running) return;
    this.#running = true;
    setImmediate(() => this.#turn());
  }

  #turn(): void {
    this.#entries.sort((left, right) => left.timeMs - right.timeMs || left.order - right.order);
    const next = this.#entries.shift();
    if (next === undefined) {
      this.#running = false;
      return;
    }
    this.#nowMs = Math.max(this.#nowMs, next.timeMs);
    next.fire();
    setImmediate(() => setImmediate(() => this.#turn()));
  }
}
