/**
 * The ghost queue of S3-FIFO: fingerprints of parts that left the small queue unused, so that one that comes back soon
 * is known to be worth more. A two-way table of fingerprints and the time of their entry, counted in entries; an entry
 * is good while fewer than `limit` came after it. It may forget (collisions) and mistake one part for another (once in
 * four billion): it only steers eviction.
 */
export class CacheGhosts {
  readonly #prints: Uint32Array;
  readonly #times: Uint32Array;
  readonly #mask: number;
  readonly #limit: number;
  #time = 0;

  constructor(limit: number) {
    const size = 2 ** Math.max(1, Math.ceil(Math.log2(limit)));
    this.#prints = new Uint32Array(size);
    this.#times = new Uint32Array(size);
    this.#mask = size - 1;
    this.#limit = limit;
  }

  memoryBytes(): number {
    return this.#prints.byteLength + this.#times.byteLength;
  }

  add(fingerprint: number): void {
    this.#time = (this.#time + 1) >>> 0;
    const first = fingerprint & this.#mask;
    const second = first ^ 1;
    const at = this.#age(first) >= this.#age(second) ? first : second;
    this.#prints[at] = fingerprint;
    this.#times[at] = this.#time;
  }

  /** True, and forgotten, where `fingerprint` entered lately. */
  take(fingerprint: number): boolean {
    const first = fingerprint & this.#mask;
    return this.#takeAt(first, fingerprint) || this.#takeAt(first ^ 1, fingerprint);
  }

  #takeAt(at: number, fingerprint: number): boolean {
    if (this.#prints[at] !== fingerprint || this.#age(at) >= this.#limit) return false;
    this.#times[at] = 0;
    this.#prints[at] = 0;
    return true;
  }

  /** Entries since the one at `at`; empty places are infinitely old. */
  #age(at: number): number {
    if (this.#times[at] === 0 && this.#prints[at] === 0) return Number.POSITIVE_INFINITY;
    return (this.#time - this.#times[at]) >>> 0;
  }
}
