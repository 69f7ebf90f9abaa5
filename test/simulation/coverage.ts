/** What happened in a run: counters by name, so that a fault that never took place is noticed. */
export class Coverage {
  readonly counts = new Map<string, number>();

  add(name: string, count = 1): void {
    this.counts.set(name, (this.counts.get(name) ?? 0) + count);
  }

  get(name: string): number {
    return this.counts.get(name) ?? 0;
  }

  merge(other: Iterable<readonly [string, number]>): void {
    for (const [name, count] of other) this.add(name, count);
  }
}

/** What must have happened in the slice of every test run. */
export const expectedEvents: readonly string[] = [
  "process killed",
  "process killed in a write",
  "killed while it started",
  "power lost",
  "node lost with its disk",
  "process frozen",
  "process thawed",
  "hand-over done",
  "moved in order",
  "taken away by force",
  "attached without a publication",
  "controller killed",
  "kernel connection broken",
  "kernel sent requests again",
  "outage of the store",
  "node partitioned from the store",
  "store request in an outage",
  "store request over a partition",
  "store request of a dead process",
  "store request of a frozen process",
  "store refused",
  "store conflict",
  "store reset-before",
  "store reset-after",
  "store late",
  "store timeout",
  "store slow request",
  "store short-body",
  "store rotten body",
  "clock off by hours",
  "image checked after take",
  "image checked after resume",
  "flush acknowledged",
  "fua write answered",
  "trim answered",
  "zeroes answered",
  "i/o error seen by a user",
  "closed well",
  "ended well",
];
