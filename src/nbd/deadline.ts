/** A deadline for what another party does: the time that we ourselves take does not count against it. */
import type { Clock, Timer } from "../base/clock.ts";

export class Deadline {
  readonly #clock: Clock;
  readonly #expired: () => void;
  #leftMs: number;
  #startedMs = 0;
  #timer: Timer | undefined;

  /** Runs from now on; `expired` is called once, after `timeoutMs` of the other party's time. */
  constructor(clock: Clock, timeoutMs: number, expired: () => void) {
    this.#clock = clock;
    this.#leftMs = timeoutMs;
    this.#expired = expired;
    this.#run();
  }

  /** False while the time is our own. */
  get isRunning(): boolean {
    return this.#timer !== undefined;
  }

  /** Runs `work` with the deadline stopped. */
  async exempt<T>(work: () => T | Promise<T>): Promise<T> {
    this.cancel();
    this.#leftMs -= this.#clock.monotonicMs() - this.#startedMs;
    try {
      return await work();
    } finally {
      this.#run();
    }
  }

  /** Stops it for good, unless in exempt work. */
  cancel(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #run(): void {
    this.#startedMs = this.#clock.monotonicMs();
    this.#timer = this.#clock.after(Math.max(0, this.#leftMs), this.#expired);
  }
}
