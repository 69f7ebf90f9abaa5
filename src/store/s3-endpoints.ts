/**
 * Which of several endpoints of one store takes the next request: in turn, leaving out those that failed, for a time
 * that doubles with every failure in a row. When all of them rest, the one whose rest ends first is tried, so there is
 * always an answer. Nothing here waits.
 */
import { assert } from "../base/assert.ts";

const FIRST_REST_MS = 500;
const LONGEST_REST_MS = 30_000;

interface Entry<T> {
  value: T;
  failures: number;
  restsUntilMs: number;
}

export class S3Endpoints<T> {
  readonly #entries: Entry<T>[];
  #next = 0;

  constructor(values: readonly T[]) {
    assert(values.length > 0, "no endpoint");
    this.#entries = values.map((value) => ({ value, failures: 0, restsUntilMs: 0 }));
  }

  get values(): T[] {
    return this.#entries.map((entry) => entry.value);
  }

  /** The endpoint for a request that starts at `nowMs` (monotonic). */
  pick(nowMs: number): T {
    let best = this.#entries[this.#next];
    for (let step = 0; step < this.#entries.length; step += 1) {
      const index = (this.#next + step) % this.#entries.length;
      const entry = this.#entries[index];
      if (entry.restsUntilMs <= nowMs) {
        this.#next = (index + 1) % this.#entries.length;
        return entry.value;
      }
      if (entry.restsUntilMs < best.restsUntilMs) best = entry;
    }
    return best.value;
  }

  /** The endpoint answered: it takes its turns again. */
  succeeded(value: T): void {
    const entry = this.#entryOf(value);
    entry.failures = 0;
    entry.restsUntilMs = 0;
  }

  /** The endpoint did not answer, or answered with a fault of its own. */
  failed(value: T, nowMs: number): void {
    const entry = this.#entryOf(value);
    // Requests that were under way together fail together: they count once.
    if (entry.restsUntilMs > nowMs) return;
    entry.restsUntilMs = nowMs + Math.min(FIRST_REST_MS * 2 ** entry.failures, LONGEST_REST_MS);
    entry.failures += 1;
  }

  #entryOf(value: T): Entry<T> {
    const entry = this.#entries.find((candidate) => candidate.value === value);
    assert(entry !== undefined, "endpoint of another store");
    return entry;
  }
}
