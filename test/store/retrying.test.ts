/** Patience, and the verdict over puts whose reply was lost: never a false "exists", never a false "created". */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKind, OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { type FaultPlan, FaultyStore, listedFaults, randomFaults } from "../../src/store/faulty.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { RetryingStore, type RetryLimits } from "../../src/store/retrying.ts";
import { HurriedClock } from "../suites/hurried-clock.ts";

interface Bench {
  clock: HurriedClock;
  random: SeededRandom;
  memory: MemoryStore;
  faulty: FaultyStore;
  store: RetryingStore;
}

function bench(plan: FaultPlan, limits?: RetryLimits, seed = 1): Bench {
  const clock = new HurriedClock();
  const random = new SeededRandom(seed);
  const memory = new MemoryStore({ clock });
  const faulty = new FaultyStore(memory, plan, { clock, random });
  const parts = { clock, random, log: nullLog, ...(limits === undefined ? {} : { limits }) };
  return { clock, random, memory, faulty, store: new RetryingStore(faulty, parts) };
}

const isUnavailable = (error: unknown): boolean => isKind(error, "unavailable");

test("a put whose reply was lost is created, not exists", async () => {
  const { store, memory, faulty, random } = bench(listedFaults("put", ["lost-reply"]));
  const body = random.bytes(500);
  assert.equal(await store.putIfAbsent("a", [body.subarray(0, 30), body.subarray(30)]), "created");
  assert.equal(faulty.counts["lost-reply"], 1);
  assert.deepEqual(await memory.get("a"), body);
});

test("a put that another writer beat between two attempts is exists", async () => {
  const { store, memory, random } = bench(({ kind, key }) => {
    if (kind !== "put" || memoryHolds(key)) return undefined;
    void memory.putIfAbsent(key, [random.bytes(500)]);
    return { fault: "refused" };
  });
  const memoryHolds = (key: string): boolean => memory.totals().objects > 0 && key === "a";
  assert.equal(await store.putIfAbsent("a", [random.bytes(500)]), "exists");
});

test("one damaged answer does not make a put of one's own somebody else's", async () => {
  let puts = 0;
  let gets = 0;
  const { store, random } = bench(({ kind }) => {
    if (kind === "put") return (puts += 1) === 1 ? { fault: "lost-reply" } : undefined;
    return kind === "get" && (gets += 1) === 1 ? { fault: "rot" } : undefined;
  });
  assert.equal(await store.putIfAbsent("a", [random.bytes(500)]), "created");
});

test("a damaged body is fetched three times, and nothing is sent twice that must be sent once", async () => {
  const { store, memory, faulty, random } = bench(listedFaults("get", ["short-body", "short-body"]));
  await memory.putIfAbsent("a", [random.bytes(500)]);
  assert.equal((await store.get("a"))?.length, 500);
  assert.equal(faulty.counts["short-body"], 2);
  let looks = 0;
  const verify = (): void => {
    looks += 1;
    throw new OperationError("corrupt", "not what it should be");
  };
  await assert.rejects(store.get("a", { verify }), { kind: "corrupt" });
  assert.equal(looks, 3);
  const once = bench(() => ({ fault: "lost-reply" }));
  await assert.rejects(once.store.delete(["a"], { once: true }), { kind: "unavailable" });
  await assert.rejects(once.store.putIfAbsent("a", [random.bytes(500)], { once: true }), { kind: "unavailable" });
  assert.equal(once.faulty.counts["lost-reply"], 2);
});

test("an object that differs only behind its identity, or only in length, is somebody else's", async () => {
  const { store, memory, random } = bench(() => undefined);
  const body = random.bytes(500);
  await memory.putIfAbsent("longer", [body, Buffer.from("x")]);
  assert.equal(await store.putIfAbsent("longer", [body]), "exists");
  await memory.putIfAbsent("other", [Buffer.concat([random.bytes(64), body.subarray(64)])]);
  assert.equal(await store.putIfAbsent("other", [body]), "exists");
});

test("a body shorter than an identity is compared whole", async () => {
  const { store, random } = bench(listedFaults("put", ["lost-reply"]));
  const body = random.bytes(5);
  assert.equal(await store.putIfAbsent("short", [body]), "created");
  assert.equal(await store.putIfAbsent("short", [Buffer.from([...body.subarray(0, 4), body[4] ^ 1])]), "exists");
});

test("once a put is known to stand, only the question whose it is is repeated", async () => {
  let puts = 0;
  let gets = 0;
  const { store, random } = bench(({ kind }) => {
    if (kind === "put") puts += 1;
    if (kind === "put") return puts === 1 ? { fault: "lost-reply" } : undefined;
    gets += 1;
    return gets <= 3 ? { fault: "refused" } : undefined;
  });
  assert.equal(await store.putIfAbsent("a", [random.bytes(100)]), "created");
  assert.deepEqual([puts, gets], [2, 4]);
});

test("an object deleted between the answer and the question is created anew", async () => {
  const { store, memory, random } = bench(({ kind, key }) => {
    if (kind === "get") void memory.delete([key]);
    return undefined;
  });
  await memory.putIfAbsent("a", [random.bytes(100)]);
  assert.equal(await store.putIfAbsent("a", [random.bytes(100)]), "created");
});

test("for any faults and any number of racing writers exactly one put is told that it created the object", async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer(), fc.integer({ min: 1, max: 6 }), async (seed, writers) => {
      const random = new SeededRandom(seed);
      const clock = new HurriedClock();
      const memory = new MemoryStore({ clock });
      const rates = { refused: 0.2, "lost-reply": 0.3, late: 0.2, delayMs: 3000 };
      const bodies = Array.from({ length: writers }, () => random.bytes(64 + random.below(100)));
      const outcomes = await Promise.all(
        bodies.map((body) => {
          const faulty = new FaultyStore(memory, randomFaults(random, rates), { clock, random });
          return new RetryingStore(faulty, { clock, random, log: nullLog }).putIfAbsent("key", [body]);
        }),
      );
      const winners = bodies.filter((_, index) => outcomes[index] === "created");
      assert.equal(winners.length, 1);
      clock.advance(10_000);
      assert.deepEqual(await memory.get("key"), winners[0]);
    }),
    { numRuns: 300 },
  );
});

test("pauses are random between nothing and 100 ms, doubling up to 5 s", async () => {
  const { store, clock } = bench(() => ({ fault: "refused" }), { maxAttempts: 200 });
  await assert.rejects(() => store.get("a"), isUnavailable);
  assert.equal(clock.slept.length, 199);
  const ceilings = clock.slept.map((_, index) => Math.min(100 * 2 ** index, 5000));
  for (const [index, pause] of clock.slept.entries())
    assert.ok(pause >= 0 && pause < ceilings[index], `pause ${index}`);
  const late = clock.slept.slice(10);
  const mean = late.reduce((sum, pause) => sum + pause, 0) / late.length;
  assert.ok(mean > 2000 && mean < 3000, `mean ${mean}`);
});

test("without limits a request is repeated until it is answered, for hours", async () => {
  let requests = 0;
  const { store, clock } = bench(() => (++requests < 5000 ? { fault: "refused" } : undefined));
  assert.equal(await store.get("a"), undefined);
  assert.equal(requests, 5000);
  assert.ok(clock.monotonicMs() > 3 * 3_600_000);
});

test("a limit of attempts, or a deadline, ends the patience with the store's own error", async () => {
  const counted = bench(() => ({ fault: "refused" }), { maxAttempts: 3 });
  await assert.rejects(() => counted.store.list(""), isUnavailable);
  assert.equal(counted.faulty.counts.refused, 3);
  let lastSentMs = 0;
  const refuse: FaultPlan = () => {
    lastSentMs = timed.clock.monotonicMs();
    return { fault: "refused" };
  };
  const timed = bench(refuse, { deadlineMs: 60_000 });
  await assert.rejects(() => timed.store.delete(["a"]), isUnavailable);
  assert.ok(lastSentMs > 50_000 && lastSentMs <= 60_000, `last sent after ${lastSentMs} ms`);
});

test("an aborted signal, or a closed store, ends the patience", async () => {
  const abort = new AbortController();
  let requests = 0;
  const aborted = bench(() => {
    if (++requests === 10) abort.abort();
    return { fault: "refused" };
  });
  await assert.rejects(() => aborted.store.get("a", { signal: abort.signal }), isUnavailable);
  assert.equal(requests, 10);
  const closed: Bench = bench(() => {
    if (closed.faulty.counts.refused === 5) void closed.store.close();
    return { fault: "refused" };
  });
  await assert.rejects(() => closed.store.get("a"), isUnavailable);
  assert.equal(closed.faulty.counts.refused, 6);
});

test("errors that time does not heal are not retried", async () => {
  for (const kind of ["invalid", "not-found", "exhausted"] as const) {
    let requests = 0;
    const failing = {
      location: "test:",
      async get() {
        requests += 1;
        throw new OperationError(kind, "no");
      },
    } as unknown as ObjectStore;
    const store = new RetryingStore(failing, { clock: new HurriedClock(), random: new SeededRandom(1), log: nullLog });
    await assert.rejects(
      () => store.get("a"),
      (error) => isKind(error, kind),
    );
    assert.equal(requests, 1);
  }
});
