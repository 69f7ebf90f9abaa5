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
  "killed at a request",
  "frozen at a request",
  "power lost",
  "power lost after a crash",
  "power lost after a failed sync",
  "node lost with its disk",
  "process frozen",
  "process thawed",
  "hand-over done",
  "moved in order",
  "taken away by force",
  "attached without a publication",
  "attached for reading",
  "unmounted with requests in flight",
  "controller killed",
  "volume deleted",
  "volume made again under its name",
  "name freed by a tombstone",
  "objects of a deleted volume that came late",
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
  "store served a rotten object",
  "store refuses a site: invalid",
  "store refuses a site: not-found",
  "object rotted",
  "journal rotted",
  "journal rotted between two lives",
  "damaged blocks found",
  "damage found under a waiting device",
  "cache rotted: bits",
  "cache rotted: index",
  "cache rotted: rolled back",
  "cache rotted: slots swapped",
  "disk error: read",
  "disk error: write",
  "disk error: sync",
  "disk error: sync-directory",
  "disk full",
  "slow disk",
  "clock off by hours",
  "map written",
  "checkpoint written",
  "fence behind a log",
  "fence for a START",
  "image checked after take",
  "image checked after resume",
  "flush acknowledged",
  "fua write answered",
  "trim answered",
  "zeroes answered",
  "a whole shard of the map cleared",
  "i/o error seen by a user",
  "says: read the local journal",
  "says: the local journal begins anew",
  "says: the local journal is set aside and will not be replayed",
  "says: a part of the local journal is set aside and not replayed",
  "says: the journal is full: writers wait until the store takes over what is there",
  "says: the block cache holds bytes that changed on the disk: dropped, S3 serves them",
  "says: the volume has failed: all its I/O answers an error from now on",
  "closed well",
  "ended well",
];
