/**
 * The gate before a store in trouble, in virtual time: how many requests reach a store that is away or wants fewer, how
 * soon it is found again, and that nobody waits for another's misfortune.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind, OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore, RequestOptions } from "../../src/store/object-store.ts";
import { RetryingStore, type RetryLimits } from "../../src/store/retrying.ts";
import { TemporaryRefusal } from "../../src/store/temporary-refusal.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";

const BODY = Buffer.alloc(64, 7);
const away = (): OperationError => new OperationError("unavailable", "nobody there");

interface Sent {
  kind: "put" | "get";
  key: string;
  atMs: number;
}

/** A store that asks `meet` about each request, when it arrives, and keeps a list of them. */
class Bench {
  readonly clock = new VirtualClock();
  readonly sent: Sent[] = [];
  readonly store: RetryingStore;
  latencyMs = 5;

  constructor(meet: (sent: Sent, signal: AbortSignal | undefined) => Promise<void> | void, limits: RetryLimits = {}) {
    const memory = new MemoryStore({ clock: this.clock });
    const arrive = async <T>(
      kind: Sent["kind"],
      key: string,
      apply: () => Promise<T>,
      options?: RequestOptions,
    ): Promise<T> => {
      const request = { kind, key, atMs: this.clock.monotonicMs() };
      this.sent.push(request);
      await meet(request, options?.signal);
      await this.clock.sleep(this.latencyMs);
      return await apply();
    };
    const inner = {
      location: "test:",
      putIfAbsent: (key: string, body: Buffer[], options?: RequestOptions) =>
        arrive("put", key, () => memory.putIfAbsent(key, body), options),
      get: (key: string) => arrive("get", key, () => memory.get(key)),
      close: () => memory.close(),
    } as unknown as ObjectStore;
    this.store = new RetryingStore(inner, { clock: this.clock, random: new SeededRandom(5), log: nullLog, limits });
  }

  puts(count: number, name = "k"): Promise<unknown>[] {
    return Array.from({ length: count }, (_, index) => this.store.putIfAbsent(`${name}${index}`, [BODY]));
  }
}

for (const minutes of [1, 30]) {
  test(`a store that is away for ${minutes} minutes is asked by one request at a time, and found within 5 s`, async () => {
    const backMs = minutes * 60_000;
    const bench = new Bench(({ atMs }) => {
      if (atMs < backMs) throw away();
    });
    await Promise.all(bench.puts(1000));
    const early = bench.sent.filter(({ atMs }) => atMs < backMs);
    const probes = early.filter(({ atMs }) => atMs > 0);
    assert.ok(early.length - probes.length <= 264, `${early.length} sent before anybody knew`);
    assert.ok(probes.length < 10 + backMs / 1500, `${probes.length} probes`);
    assert.ok(probes.length > backMs / 3005, "it is asked all the time");
    for (const [index, { atMs }] of probes.entries()) {
      assert.ok(index === 0 || atMs - probes[index - 1].atMs >= 50, "probes keep a distance");
    }
    assert.equal(bench.sent.length, early.length + 1000, "afterwards each is sent once");
    assert.ok(bench.clock.monotonicMs() - backMs < 5000, `all done after ${bench.clock.monotonicMs() - backMs} ms`);
  });
}

test("after an outage requests come slowly at first", async () => {
  let underWay = 0;
  let most = 0;
  let foundMs = Infinity;
  const bench = new Bench(async ({ atMs }) => {
    if (atMs < 60_000) throw away();
    underWay += 1;
    foundMs = Math.min(foundMs, atMs);
    // Each request takes 25 ms: three times after the first of them.
    if (atMs < foundMs + 99) most = Math.max(most, underWay);
    await bench.clock.sleep(20);
    underWay -= 1;
  });
  await Promise.all(bench.puts(500));
  assert.ok(most >= 8 && most <= 32, `${most} at once`);
});

test("writes that fail hold up no read", async () => {
  const bench = new Bench(({ kind, atMs }) => {
    if (kind === "put" && atMs < 60_000) throw away();
  });
  const puts = bench.puts(100);
  await bench.clock.sleep(30_000);
  const beforeMs = bench.clock.monotonicMs();
  await Promise.all(Array.from({ length: 50 }, () => bench.store.get("k0")));
  assert.ok(bench.clock.monotonicMs() - beforeMs < 1000);
  assert.deepEqual(bench.store.state(), { isAway: true, waitingRequests: 100 });
  await Promise.all(puts);
  assert.deepEqual(bench.store.state(), { isAway: false, waitingRequests: 0 });
});

test("one key that always fails holds up no other", async () => {
  const bench = new Bench(({ key, atMs }) => {
    if (key === "bad0" && atMs < 3_600_000) throw away();
  });
  const bad = bench.puts(1, "bad");
  for (let round = 0; round < 20; round += 1) {
    await bench.clock.sleep(10_000);
    const beforeMs = bench.clock.monotonicMs();
    await Promise.all(bench.puts(5, `good${round}-`));
    assert.ok(bench.clock.monotonicMs() - beforeMs < 6000, "at most one probe before them");
  }
  await Promise.all(bad);
});

test("half of all requests failing for an hour costs no more requests than it must", async () => {
  const random = new SeededRandom(3);
  const bench = new Bench(() => {
    if (random.below(2) === 0) throw away();
  });
  for (let second = 0; second < 3600; second += 10) await Promise.all(bench.puts(20, `at${second}-`));
  const calls = 360 * 20;
  // Each call needs two requests on average, whoever sends them.
  assert.ok(bench.sent.length < calls * 2 * 1.2, `${bench.sent.length} requests for ${calls} calls`);
});

test("a store that serves a hundred requests a second gets few more than that", async () => {
  let tokens = 10;
  let filledMs = 0;
  let refused = 0;
  const bench = new Bench(({ atMs }) => {
    tokens = Math.min(10, tokens + (atMs - filledMs) / 10);
    filledMs = atMs;
    if (tokens < 1) {
      refused += 1;
      throw new TemporaryRefusal("slow-down", "fewer, please");
    }
    tokens -= 1;
  });
  bench.latencyMs = 30;
  let done = 0;
  const writer = async (name: number): Promise<void> => {
    for (; done < 6000; done += 1) await bench.store.putIfAbsent(`w${name}-${done}`, [BODY]);
  };
  await Promise.all(Array.from({ length: 200 }, (_, name) => writer(name)));
  const seconds = bench.clock.monotonicMs() / 1000;
  assert.ok(refused < bench.sent.length / 6, `${refused} of ${bench.sent.length} refused`);
  assert.ok(seconds < 120, `${seconds} s for what takes 60 s at best`);
});

test("a probe that hangs does not keep the next one from finding the store", async () => {
  const bench = new Bench(async ({ atMs }) => {
    if (atMs < 100) throw away();
    if (atMs < 60_000) await bench.clock.sleep(3_600_000);
  });
  const puts = bench.puts(300);
  await bench.clock.sleep(70_000);
  const hanging = bench.sent.filter(({ atMs }) => atMs >= 100 && atMs < 60_000).length;
  assert.ok(hanging >= 12 && hanging <= 24, `${hanging} probes`);
  assert.equal(bench.store.state().isAway, false);
  assert.equal(bench.store.state().waitingRequests, 0);
  await Promise.all(puts);
});

test("requests that hang on dead connections are sent again once the store is found", async () => {
  let lost = 0;
  const bench = new Bench(async ({ key, atMs }, signal) => {
    if (atMs >= 600_000) return;
    if (atMs > 1000 && !key.startsWith("hung")) throw away();
    await bench.clock.sleep(3_600_000, signal).catch(() => {
      lost += 1;
      throw away();
    });
  });
  const hung = bench.puts(6, "hung");
  await bench.clock.sleep(2000);
  const others = bench.puts(20);
  await Promise.all([...hung, ...others]);
  assert.equal(lost, 6);
  assert.ok(bench.clock.monotonicMs() < 605_000, `done after ${bench.clock.monotonicMs() - 600_000} ms`);
});

test("requests that a slow store may still answer are left alone", async () => {
  let aborted = 0;
  const bench = new Bench(async ({ key, atMs }, signal) => {
    if (key.startsWith("bad") && atMs < 90_000) throw away();
    // Every answer takes a minute.
    await bench.clock.sleep(60_000, signal).catch(() => {
      aborted += 1;
      throw away();
    });
  });
  const slow = bench.puts(3, "slow");
  const bad = bench.puts(20, "bad");
  await bench.clock.sleep(1000);
  assert.equal(bench.store.state().isAway, true);
  await Promise.all([...slow, ...bad]);
  assert.equal(aborted, 0);
});

test("a late answer to an earlier request shows that the store is there", async () => {
  const bench = new Bench(async ({ key, atMs }) => {
    if (key === "slow0") await bench.clock.sleep(200);
    else if (atMs === 0) throw away();
    else await bench.clock.sleep(10_000);
  });
  const slow = bench.puts(1, "slow");
  const others = bench.puts(20);
  await Promise.all(slow);
  assert.equal(bench.store.state().isAway, false);
  await Promise.all(others);
});

test("races for a key are no reason to ask less", async () => {
  const bench = new Bench(({ atMs }) => {
    if (atMs < 20_000) throw new TemporaryRefusal("conflict", "another request is under way");
  });
  const puts = bench.puts(50);
  await bench.clock.sleep(10_000);
  assert.equal(bench.store.state().isAway, false);
  await Promise.all(puts);
});

test("requests that were given up are no sign of an outage", async () => {
  const bench = new Bench(() => undefined);
  const aborted = new AbortController();
  aborted.abort(new Error("enough"));
  const failing = {
    location: "test:",
    async get() {
      throw away();
    },
  } as unknown as ObjectStore;
  const store = new RetryingStore(failing, { clock: bench.clock, random: new SeededRandom(1), log: nullLog });
  for (let count = 0; count < 50; count += 1) {
    await assert.rejects(store.get("k", { signal: aborted.signal }), (error) => isKind(error, "unavailable"));
  }
  assert.equal(store.state().isAway, false);
});

test("whoever waits at the gate can be called off, reach a deadline, or see the store closed", async () => {
  const bench = new Bench(() => {
    throw away();
  });
  const refused = { message: "nobody there" };
  const others = bench.puts(20).map((put) => assert.rejects(put, refused));
  await bench.clock.sleep(10_000);
  const calledOff = new AbortController();
  const waiting = assert.rejects(bench.store.putIfAbsent("x", [BODY], { signal: calledOff.signal }), refused);
  await bench.clock.settle();
  assert.equal(bench.store.state().waitingRequests, 21);
  calledOff.abort(new Error("enough"));
  await waiting;
  assert.equal(bench.store.state().waitingRequests, 20);
  await bench.store.close();
  await Promise.all(others);
  await assert.rejects(bench.store.putIfAbsent("x", [BODY]), refused);

  const limited = new Bench(
    () => {
      throw away();
    },
    { deadlineMs: 30_000 },
  );
  await Promise.all(limited.puts(20).map((put) => assert.rejects(put, refused)));
  assert.ok(limited.clock.monotonicMs() <= 30_000 && limited.clock.monotonicMs() > 29_000);
});
