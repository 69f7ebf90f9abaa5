/**
 * A process of the simulated world: it runs, is frozen (nothing of it moves, requests that have left go on without it)
 * or dead (nothing of it ever moves again). Everything that comes back to the process (timers, answers of disk, store
 * and sockets) passes gate(), so that it can end between any two events.
 */
import type { Clock, Timer } from "../../src/base/clock.ts";

export class SimProcess {
  readonly name: string;
  #dead = false;
  #frozen = false;
  #parked: (() => void)[] = [];
  readonly #died = Promise.withResolvers<void>();
  readonly #deathListeners = new Set<() => void>();

  constructor(name: string) {
    this.name = name;
  }

  get dead(): boolean {
    return this.#dead;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  /** Resolves when the process has died. */
  get died(): Promise<void> {
    return this.#died.promise;
  }

  /** Calls `listener` when the process dies; answers how to take that back. */
  onDeath(listener: () => void): () => void {
    this.#deathListeners.add(listener);
    return () => void this.#deathListeners.delete(listener);
  }

  /** Runs `continuation` now, when the process is thawed, or never. */
  gate(continuation: () => void): void {
    if (this.#dead) return;
    if (this.#frozen) this.#parked.push(continuation);
    else continuation();
  }

  kill(): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#parked = [];
    for (const listener of this.#deathListeners) listener();
    this.#deathListeners.clear();
    this.#died.resolve();
  }

  freeze(): void {
    this.#frozen = true;
  }

  thaw(): void {
    this.#frozen = false;
    const parked = this.#parked;
    this.#parked = [];
    for (const continuation of parked) this.gate(continuation);
  }
}

/** The clock as one process sees it: off by `skewMs`, and silent while the process does not run. */
export class ProcessClock implements Clock {
  readonly #clock: Clock;
  readonly #process: SimProcess;
  readonly #skewMs: number;

  constructor(clock: Clock, process: SimProcess, skewMs = 0) {
    this.#clock = clock;
    this.#process = process;
    this.#skewMs = skewMs;
  }

  now(): number {
    return Math.max(0, this.#clock.now() + this.#skewMs);
  }

  monotonicMs(): number {
    return this.#clock.monotonicMs();
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal === undefined) {
        this.after(ms, resolve);
        return;
      }
      if (signal.aborted) {
        reject(signal.reason as Error);
        return;
      }
      const abort = (): void => {
        timer.cancel();
        forget();
        reject(signal.reason as Error);
      };
      const timer = this.after(ms, () => {
        signal.removeEventListener("abort", abort);
        forget();
        resolve();
      });
      signal.addEventListener("abort", abort, { once: true });
      // A signal made of others is kept for ever while somebody listens to it, and with it all of a dead process.
      const forget = this.#process.onDeath(() => signal.removeEventListener("abort", abort));
    });
  }

  after(ms: number, callback: () => void): Timer {
    let cancelled = false;
    const timer = this.#clock.after(ms, () => {
      this.#process.gate(() => {
        if (!cancelled) callback();
      });
    });
    return {
      cancel: () => {
        cancelled = true;
        timer.cancel();
      },
    };
  }

  yield(): Promise<void> {
    return this.sleep(0);
  }
}
