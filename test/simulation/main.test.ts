/** Long runs of the simulator: they can be ended and gone on with, and a world that never ends does not hold them up. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { SeedThread } from "./seed-pool.ts";

test("a run that is interrupted tells which seeds are done, and where to go on", async () => {
  const main = join(import.meta.dirname, "main.ts");
  const run = spawn(process.execPath, [main, "--seed", "11", "--runs", "1000000", "--jobs", "2", "--hashes"]);
  const ended = once(run, "exit");
  const seeds: number[] = [];
  const lines: string[] = [];
  for await (const line of createInterface({ input: run.stdout })) {
    lines.push(line);
    const seed = /^seed (\d+): trace/.exec(line)?.[1];
    if (seed === undefined) continue;
    seeds.push(Number(seed));
    if (seeds.length === 3) run.kill("SIGINT");
  }
  assert.deepEqual(await ended, [0, null]);
  const last = Math.max(...seeds);
  assert.deepEqual(
    seeds.toSorted((left, right) => left - right),
    Array.from({ length: last - 10 }, (_, index) => 11 + index),
  );
  assert.match(
    lines.at(-2)!,
    new RegExp(`^seeds 11 to ${last}: ${seeds.length} worlds, \\d+ crash points \\(\\d+ with`),
  );
  assert.equal(lines.at(-1), `to go on: --seed ${last + 1}`);
});

test("a world that does not end fails, and the thread runs others after it", async () => {
  const thread = new SeedThread(100);
  for (const seed of [1, 2]) {
    const result = await thread.run({ seed, options: { steps: 1_000_000_000 } });
    assert.deepEqual([result.seed, result.ok, result.hangs], [seed, false, true]);
    assert.match(result.error!, /has not ended/);
  }
  await thread.end();
});
