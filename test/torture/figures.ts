/**
 * What a torture run counts and measures, and how it tells: counters by name, and samples of which it gives count,
 * median, 99th percentile and maximum. All times are of the machine's monotonic clock, the same in every process.
 */

/** Milliseconds of the monotonic clock of this machine: comparable between processes, blind to settings of the time. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000;
}

export class Figures {
  readonly #counts = new Map<string, number>();
  readonly #samples = new Map<string, number[]>();

  /** With `json` they start with the counts and samples of others: `{counts, samples}`. */
  constructor(json?: string) {
    if (json !== undefined) this.add(JSON.parse(json) as Figures);
  }

  count(name: string, by: number = 1): void {
    this.#counts.set(name, (this.#counts.get(name) ?? 0) + by);
  }

  /** Milliseconds, or another quantity where the name says so. */
  sample(name: string, value: number): void {
    const values = this.#samples.get(name) ?? [];
    values.push(value);
    this.#samples.set(name, values);
  }

  countOf(name: string): number {
    return this.#counts.get(name) ?? 0;
  }

  get counts(): Record<string, number> {
    return Object.fromEntries(this.#counts);
  }

  get samples(): Record<string, readonly number[]> {
    return Object.fromEntries(this.#samples);
  }

  /** Takes in what another run, perhaps in another guest, has counted. */
  add(other: { counts: Record<string, number>; samples: Record<string, readonly number[]> }): void {
    for (const [name, by] of Object.entries(other.counts)) this.count(name, by);
    for (const [name, values] of Object.entries(other.samples)) {
      for (const value of values) this.sample(name, value);
    }
  }

  /** One line a figure. */
  lines(): string[] {
    const counts = [...this.#counts].map(([name, count]) => `${name}: ${count}`);
    const samples = [...this.#samples].map(([name, values]) => `${name}: ${describeSamples(values)}`);
    return [...counts, ...samples];
  }
}

function describeSamples(values: readonly number[]): string {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number): string => Math.round(percentile(sorted, share)).toString();
  return `n=${sorted.length} median=${at(0.5)} p90=${at(0.9)} p99=${at(0.99)} max=${at(1)}`;
}

/** The smallest value that `share` of the sorted values do not exceed. */
export function percentile(sorted: readonly number[], share: number): number {
  if (sorted.length === 0) return Number.NaN;
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}
