/**
 * Races for a volume (ownership-race.ts) in virtual time over a store in memory that loses the replies of conditional
 * puts, applies them late and answers 409; each round has a new store and a new seed.
 */
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { type FaultPlan, FaultyStore } from "../../src/store/faulty.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { TemporaryRefusal } from "../../src/store/temporary-refusal.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";
import { type RaceResult, runRace } from "./ownership-race.ts";

const NODES = 3;
const PUTS_A_ROUND = 2500;

export interface MemoryRaceTotals extends RaceResult {
  /** Conditional puts that were asked for, and the requests for them that reached the store. */
  puts: number;
  putRequests: number;
  /** Of these: applied and not answered, or applied long after they had been taken for failed. */
  lostReplies: number;
  latePuts: number;
  /** Answered with 409 before they reached the store. */
  conflicts: number;
}

/** At least `puts` conditional puts in rounds by seed. Rejects at the first thing that must not be. */
export async function memoryRaces(puts: number, firstSeed: number): Promise<MemoryRaceTotals> {
  const totals: MemoryRaceTotals = {
    puts: 0,
    putRequests: 0,
    lostReplies: 0,
    latePuts: 0,
    conflicts: 0,
    openings: 0,
    acknowledgedFlushes: 0,
    fencedOwners: 0,
    lostRaces: 0,
  };
  for (let seed = firstSeed; totals.puts < puts; seed += 1) {
    await round(seed, totals, Math.min(puts, totals.puts + PUTS_A_ROUND));
  }
  return totals;
}

async function round(seed: number, totals: MemoryRaceTotals, untilPuts: number): Promise<void> {
  const clock = new VirtualClock();
  const random = new SeededRandom(seed);
  const memory = new MemoryStore({ clock });
  const plan: FaultPlan = ({ kind }) => {
    const delayMs = random.below(15);
    const draw = random.fraction();
    if (kind !== "put") return { delayMs, ...(draw < 0.03 ? { fault: "lost-reply" as const } : {}) };
    totals.putRequests += 1;
    if (draw < 0.2) {
      totals.lostReplies += 1;
      return { delayMs, fault: "lost-reply" };
    }
    if (draw < 0.24) {
      totals.latePuts += 1;
      return { delayMs: random.below(3000), fault: "late" };
    }
    return { delayMs };
  };
  const stores = Array.from({ length: NODES }, (): ObjectStore => {
    const faulty = new FaultyStore(memory, plan, { clock, random });
    const conflicting = withConflicts(faulty, () => random.fraction() < 0.04 && (totals.conflicts += 1) > 0);
    const retrying = new RetryingStore(conflicting, { clock, random, log: nullLog });
    return counted(retrying, () => (totals.puts += 1));
  });
  const isDone = (): boolean => totals.puts >= untilPuts;
  const result = await runRace({ clock, random, volumeId: `race-${seed}`, stores, isDone, peaceMs: 4000 });
  for (const key of ["openings", "acknowledgedFlushes", "fencedOwners", "lostRaces"] as const) {
    totals[key] += result[key];
  }
}

function withConflicts(store: ObjectStore, happens: () => boolean): ObjectStore {
  return putThrough(store, async (put) => {
    if (happens()) throw new TemporaryRefusal("conflict", "another request is under way");
    return await put();
  });
}

function counted(store: ObjectStore, count: () => void): ObjectStore {
  return putThrough(store, (put) => {
    count();
    return put();
  });
}

type Put = ReturnType<ObjectStore["putIfAbsent"]>;

/** The same store with something around its conditional puts. */
function putThrough(store: ObjectStore, around: (put: () => Put) => Put): ObjectStore {
  return {
    location: store.location,
    putIfAbsent: (key, body, options) => around(() => store.putIfAbsent(key, body, options)),
    get: (key, options) => store.get(key, options),
    getRange: (key, range, options) => store.getRange(key, range, options),
    list: (prefix, options) => store.list(prefix, options),
    delete: (keys, options) => store.delete(keys, options),
    close: () => store.close(),
  };
}
