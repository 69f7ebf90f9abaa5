/**
 * The store away or failing under load, in virtual time: writers slow down and nothing fails, what reaches the store is
 * bounded, everything drains afterwards, and the operator was told when the journal would be full.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { TemporaryRefusal } from "../../src/store/temporary-refusal.ts";
import { OutageBench } from "./outage-bench.ts";

const MIB = 1024 * 1024;
const MINUTE = 60_000;
const away = (): OperationError => new OperationError("unavailable", "nobody there");

for (const minutes of [10, 30]) {
  test(`the store away for ${minutes} minutes: writers slow down, nothing fails, and it is as before within 5 s`, async () => {
    const load = { volumes: 2, blocks: 4, pauseMs: 250, flushEvery: 20 };
    const run = async (outageMs: number) => {
      const bench = new OutageBench();
      await bench.open(load.volumes, 24 * MIB);
      const fromMs = bench.clock.monotonicMs() + MINUTE;
      const backMs = fromMs + outageMs;
      bench.weather = (nowMs) => (nowMs >= fromMs && nowMs < backMs ? away() : undefined);
      const loaded = bench.load(load, backMs + 5 * MINUTE);
      await bench.clock.sleep(backMs - bench.clock.monotonicMs());
      const before = { requests: bench.requests, writes: bench.writes, pressure: pressureOf(bench) };
      await bench.clock.sleep(5000);
      const after = { flushes: bench.flushes, behindMs: bench.volumes.map((volume) => volume.status().behindMs) };
      await loaded;
      await bench.check();
      await bench.close();
      return { bench, before, after };
    };
    const { bench, before, after } = await run(minutes * MINUTE);
    const calm = await run(0);
    const requestsCalm = (calm.bench.requests * (minutes + 6)) / 6;

    assert.ok(before.pressure > 0.65, `the journal was ${before.pressure} full`);
    assert.ok(before.writes > 0.2 * load.volumes * minutes * 240, `${before.writes} writes went on`);
    // A flush of each volume began each 5 s or so before the outage: all that waited are answered.
    assert.ok(Math.max(...after.behindMs) <= 6000, `behind by ${Math.max(...after.behindMs)} ms`);
    assert.ok(bench.requests <= requestsCalm * 1.2, `${bench.requests} requests, without outage ${requestsCalm}`);
    assert.equal(bench.lines.filter(({ message }) => message.startsWith("the store is away")).length, 1);
    assert.equal(bench.lines.filter(({ message }) => message === "the store answers again").length, 1);
  });
}

test("half of all requests failing for an hour: nothing fails, and no more is asked than must be", async () => {
  const load = { volumes: 2, blocks: 2, pauseMs: 1000, flushEvery: 3 };
  const run = async (share: number) => {
    const bench = new OutageBench();
    await bench.open(load.volumes, 24 * MIB);
    const random = new SeededRandom(8);
    let failed = 0;
    bench.weather = () => (random.fraction() < share ? ((failed += 1), away()) : undefined);
    await bench.load(load, bench.clock.monotonicMs() + 60 * MINUTE);
    const requests = bench.requests;
    bench.weather = () => undefined;
    await bench.check();
    await bench.close();
    return { requests, done: requests - failed, bench };
  };
  const { requests, done, bench } = await run(0.5);
  assert.ok(requests > 2000, `${requests} requests`);
  // Each answered request needs two on average, whoever sends them.
  assert.ok(requests <= done * 2 * 1.2, `${requests} requests for ${done} answers`);
  const calm = await run(0);
  assert.ok(done <= calm.requests * 1.2, `${done} answers, without errors ${calm.requests}`);
  assert.equal(bench.flushes, Math.floor(bench.writes / load.flushEvery));
});

test("a store that throttles slows writers and fails nothing", async () => {
  const bench = new OutageBench();
  await bench.open(6, 24 * MIB);
  let tokens = 1;
  let filledMs = 0;
  let refused = 0;
  bench.weather = (nowMs) => {
    tokens = Math.min(2, tokens + (nowMs - filledMs) / 1000);
    filledMs = nowMs;
    if (tokens >= 1) {
      tokens -= 1;
      return undefined;
    }
    refused += 1;
    return new TemporaryRefusal("slow-down", "fewer, please");
  };
  await bench.load({ volumes: 6, blocks: 1, pauseMs: 100, flushEvery: 4 }, bench.clock.monotonicMs() + 4 * MINUTE);
  assert.ok(refused > 100 && refused < bench.requests, `${refused} of ${bench.requests} refused`);
  bench.weather = () => undefined;
  await bench.check();
  await bench.close();
});

test("the operator sees when the journal will be full, and hears of each step once", async () => {
  const bench = new OutageBench();
  await bench.open(1, 24 * MIB);
  const [volume] = bench.volumes;
  const seconds = (): number => volume.status().journalFullSeconds;
  assert.equal(seconds(), Infinity);
  const fromMs = bench.clock.monotonicMs();
  const backMs = fromMs + 60 * MINUTE;
  bench.weather = (nowMs) => (nowMs < backMs ? away() : undefined);
  // 8 blocks and a header each 250 ms: 36 KiB four times a second fill 24 MiB in about three minutes.
  const loaded = bench.load({ volumes: 1, blocks: 8, pauseMs: 250, flushEvery: 1000 }, backMs + MINUTE);
  await bench.clock.sleep(80_000);
  const expected = (24 * 1024 * (1 - pressureOf(bench))) / (4 * 36);
  assert.ok(Math.abs(seconds() - expected) < expected / 5, `${seconds()} s, expected ${expected}`);
  await bench.clock.sleep(20 * MINUTE);
  // Slowed by now, so that the rest lasts for ten minutes at any moment.
  assert.ok(seconds() > 500 && seconds() < 1200, `${seconds()} s`);
  await loaded;
  await bench.check();
  await bench.clock.sleep(MINUTE);
  assert.equal(seconds(), Infinity);
  const told = bench.lines.filter(({ message }) => message.startsWith("the journal"));
  assert.deepEqual(
    told.map(({ message }) => message.split(":")[0] + (message.includes("slowed") ? ", slowed" : "")),
    ["the journal is filling", "the journal is filling, slowed", "the journal has room again"],
  );
  const warned = Number(told[0].fields.fullInSeconds);
  assert.ok(warned > 60 && warned < 240, `said ${warned} s`);
  await bench.close();
});

function pressureOf(bench: OutageBench): number {
  const shares = bench.volumes.map((volume) => {
    const { journalUsedBytes, journalLimitBytes } = volume.status();
    return journalUsedBytes / journalLimitBytes;
  });
  return Math.max(...shares);
}
