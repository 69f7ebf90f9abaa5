/**
 * The simulator in `npm test`: the same seed takes the same steps, seeds that once failed pass, and a slice of fresh
 * worlds with 10,000 crash points loses nothing, while every fault on the list takes place.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { failedSeeds } from "./failed-seeds.ts";
import { expectedEvents } from "./coverage.ts";
import type { Result, RunOptions } from "./run-seed.ts";
import { type Job, runJobs } from "./seed-pool.ts";
import { replayCommand } from "./shrink.ts";
import { Tally } from "./tally.ts";

const THREADS = 2;
const SLICE_CRASHES = 10_000;
const COLD_DISKS_CRASHES = 2000;
const SHORT_LIVES_CRASHES = 3000;
const FIRST_SEED = 1;

function explain({ seed, error, trace, steps }: Result, options: RunOptions = {}): string {
  return [`seed ${seed}: ${error}`, ...trace.slice(-40), replayCommand(seed, { steps, ...options })].join("\n");
}

test("a seed takes the same steps every time", async () => {
  const seeds = [11, 12, 13, 14, 11, 12, 13, 14];
  const hashes = new Map<number, string[]>();
  const jobs = seeds.map((seed) => ({ seed, options: { steps: 150 } })).values();
  await runJobs(jobs, THREADS, ({ seed, traceHash, traceLines, events }) => {
    hashes.set(seed, [...(hashes.get(seed) ?? []), `${traceHash} ${traceLines} ${events}`]);
  });
  for (const [seed, [first, second]] of hashes) assert.equal(first, second, `seed ${seed}`);
  assert.equal(new Set([...hashes.values()].map(([hash]) => hash)).size, 4);
});

test("every seed that ever failed passes", async () => {
  const jobs = failedSeeds.map(({ seed }) => ({ seed, options: {} })).values();
  await runJobs(jobs, THREADS, (result) => assert.ok(result.ok, explain(result)));
});

test("nothing is lost over 10,000 crash points, and everything that can happen has happened", async (context) => {
  const tally = new Tally();
  function* jobs(): Generator<Job> {
    for (let seed = FIRST_SEED; tally.crashes < SLICE_CRASHES; seed += 1) yield { seed, options: {} };
  }
  await runJobs(jobs(), THREADS, (result) => {
    tally.add(result);
    assert.ok(result.ok, explain(result));
  });
  for (const line of tally.table()) context.diagnostic(line);
  context.diagnostic(tally.line());
  const never = expectedEvents.filter((name) => tally.coverage.get(name) === 0);
  assert.deepEqual(never, [], "what never happened in the slice");
});

test("nothing is lost over 3,000 crash points where hardly anybody lives for long", async (context) => {
  const tally = new Tally();
  function* jobs(): Generator<Job> {
    for (let seed = FIRST_SEED; tally.crashes < SHORT_LIVES_CRASHES; seed += 1)
      yield { seed, options: { shortLives: true } };
  }
  await runJobs(jobs(), THREADS, (result) => {
    assert.ok(result.ok, explain(result, { shortLives: true }));
    tally.add(result);
  });
  context.diagnostic(tally.line());
  assert.ok(tally.crashes / tally.worlds > 80, "lives are short");
});

test("nothing is lost over 2,000 crash points where what the disks hold has partly left memory", async (context) => {
  const options = { coldDisks: true };
  const tally = new Tally();
  function* jobs(): Generator<Job> {
    for (let seed = FIRST_SEED; tally.crashes < COLD_DISKS_CRASHES; seed += 1) yield { seed, options };
  }
  await runJobs(jobs(), THREADS, (result) => {
    assert.ok(result.ok, explain(result, options));
    tally.add(result);
  });
  context.diagnostic(tally.line());
  assert.ok((tally.coverage.get("a page has left memory") ?? 0) > 1000, "disks are waited for");
});
