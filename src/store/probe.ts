/**
 * Finds out whether a store keeps the promises that everything rests on, before anything is trusted to it: of racing
 * conditional creates exactly one wins, the winner's bytes come back, and a listing shows them at once. Stores that
 * ignore the condition are known to exist, and with one of them two nodes could write one volume: the probe fails
 * closed, with the way out named. It leaves nothing behind, except where it is killed in the midst of it or may not
 * delete, which it reports too.
 */
import type { Clock } from "../base/clock.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { nullLog } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import { IDENTITY_BYTES, type ObjectStore, type PutOutcome } from "./object-store.ts";

export const PROBE_PREFIX = "v1/probe/";

/**
 * The default is 16 creates of each of 8 keys: a store that ignores the condition lets all of them win the first key.
 * One that only checks before it writes loses most races as well; 50 keys (`s3block` uses them for a store it has not
 * seen before) leave it no chance.
 */
export interface ProbeOptions {
  clock: Clock;
  random: Random;
  log?: Log;
  /** Other ways to the same store, for example each address of its endpoint: they take part in every race. */
  peers?: readonly ObjectStore[];
  /** Keys raced for; default 8. */
  keys?: number;
  /** Creates racing for each key; default 16. */
  racers?: number;
}

const BODY_BYTES = 4096;
const OTHER_STORE =
  "use a store that has them (AWS S3, MinIO, Ceph from 20.2 on, R2 and others), behind one endpoint that keeps them";

/** Resolves where the store can be trusted; rejects with "invalid" where not, and as the store does where it fails. */
export async function probeStore(store: ObjectStore, options: ProbeOptions): Promise<void> {
  const { clock, random, log = nullLog, peers = [], keys = 8, racers = 16 } = options;
  const ways = [store, ...peers];
  const prefix = `${PROBE_PREFIX}${random.bytes(16).toString("hex")}/`;
  const names = Array.from({ length: keys }, (_, index) => `${prefix}${index.toString(16).padStart(8, "0")}`);
  const startedMs = clock.monotonicMs();
  try {
    for (const key of names) await probeKey(ways, key, { random, racers });
    await probeListing(ways, prefix, names);
  } catch (error) {
    await store.delete(names).catch((reason: unknown) => {
      log.warn("objects of the store probe were left behind", { location: store.location, error: describe(reason) });
    });
    throw error;
  }
  await store.delete(names);
  log.info("store keeps conditional writes", {
    location: store.location,
    ways: ways.length,
    keys,
    racers,
    ms: Math.round(clock.monotonicMs() - startedMs),
  });
}

async function probeKey(
  ways: readonly ObjectStore[],
  key: string,
  { random, racers }: { random: Random; racers: number },
): Promise<void> {
  const bodies = Array.from({ length: Math.max(racers, ways.length) }, () => random.bytes(BODY_BYTES));
  const results = await Promise.allSettled(
    bodies.map((body, index) => ways[index % ways.length].putIfAbsent(key, [body])),
  );
  const outcomes = results.map((result): PutOutcome => {
    if (result.status === "rejected") throw result.reason;
    return result.value;
  });
  const winners = outcomes.filter((outcome) => outcome === "created").length;
  if (winners !== 1) {
    throw refusal(
      `the store does not keep conditional writes (If-None-Match), without which two nodes could write one volume: ${OTHER_STORE}`,
      ways[0],
      { racers: bodies.length, winners },
    );
  }
  const winner = bodies[outcomes.indexOf("created")];
  for (const way of ways) {
    const stored = await way.get(key);
    if (stored === undefined) throw refusal("the store does not show an object that it has just created", way, { key });
    if (!stored.equals(winner)) {
      throw refusal("the store gave back other bytes than the winner of a conditional write had written", way, { key });
    }
    const start = await way.getRange(key, { offset: 16, length: IDENTITY_BYTES });
    if (start?.bytes.equals(winner.subarray(16, 16 + IDENTITY_BYTES)) !== true || start.totalBytes !== winner.length) {
      throw refusal("the store gave back another range than it was asked for", way, { key });
    }
  }
}

async function probeListing(ways: readonly ObjectStore[], prefix: string, names: readonly string[]): Promise<void> {
  for (const way of ways) {
    const page = await way.list(prefix);
    const listed = page.objects.map((object) => object.key);
    if (listed.length !== names.length || listed.some((key, index) => key !== names[index])) {
      throw refusal("the store does not list what it has just created, in byte order", way, {
        created: names.length,
        listed: listed.length,
      });
    }
  }
}

function refusal(message: string, store: ObjectStore, context: Record<string, string | number>): OperationError {
  return new OperationError("invalid", message, { context: { location: store.location, ...context } });
}
