/** Sums up many worlds: what happened how often, and how fast. */
import { Coverage } from "./coverage.ts";
import type { Result } from "./run-seed.ts";

export class Tally {
  readonly coverage = new Coverage();
  readonly failures: Result[] = [];
  worlds = 0;
  crashes = 0;
  crashesAtRisk = 0;
  events = 0;
  readonly #beganNs = process.hrtime.bigint();

  add(result: Result): void {
    this.coverage.merge(result.coverage);
    this.worlds += 1;
    this.crashes += result.crashes;
    this.crashesAtRisk += result.crashesAtRisk;
    this.events += result.events;
    if (!result.ok) this.failures.push(result);
  }

  table(): string[] {
    return [...this.coverage.counts]
      .toSorted(([left], [right]) => (left < right ? -1 : 1))
      .map(([name, count]) => `  ${String(count).padStart(9)}  ${name}`);
  }

  line(): string {
    const seconds = Number(process.hrtime.bigint() - this.#beganNs) / 1e9;
    const speed = `${(this.worlds / seconds).toFixed(1)} worlds and ${(this.crashes / seconds).toFixed(0)} crashes a second`;
    const crashes = `${this.crashes} crash points (${this.crashesAtRisk} with writes at risk)`;
    const counts = `${this.worlds} worlds, ${crashes}, ${this.events} events, ${this.failures.length} failed`;
    return `${counts}, ${seconds.toFixed(0)} s, ${speed}`;
  }
}
