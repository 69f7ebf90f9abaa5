/**
 * `npm run simulate -- --seed N --runs M`: worlds of seeds N … N+M−1; ends with 1 where one of them failed.
 *
 *   --steps K       actions of a world (300)
 *   --jobs J        threads (1)
 *   --crashes C     begins no further world once there were so many crash points
 *   --short-lives   processes and machines die, freeze and lose the volume four times as often
 *   --cold-disks    a page of four on the nodes' disks has left memory, and reads wait for it
 *   --without a,b   faults that stay off          --skip 3,7-9   actions left out (both: what a shrunk trace prints)
 *   --trace L       lines of the trace of a failure (60)
 *   --no-shrink     shows a failure as it came     --hashes   prints the checksum of every world's trace
 *
 * It says twice a minute how far it is. Ctrl-C (or SIGTERM) begins no further world, and prints the total and the seed
 * to go on with; a second one ends at once.
 */
import { parseArgs } from "node:util";
import { Tally } from "./tally.ts";
import { type Job, runJobs, SeedThread } from "./seed-pool.ts";
import type { Result, RunOptions } from "./run-seed.ts";
import { parseRanges, replayCommand, shrink } from "./shrink.ts";

const PROGRESS_MS = 30_000;

const { values } = parseArgs({
  allowNegative: true,
  options: {
    seed: { type: "string", default: "1" },
    runs: { type: "string", default: "1" },
    steps: { type: "string" },
    jobs: { type: "string", default: "1" },
    crashes: { type: "string", default: "Infinity" },
    without: { type: "string", default: "" },
    skip: { type: "string", default: "" },
    trace: { type: "string", default: "60" },
    shrink: { type: "boolean", default: true },
    "short-lives": { type: "boolean", default: false },
    "cold-disks": { type: "boolean", default: false },
    hashes: { type: "boolean", default: false },
  },
});

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

const options: RunOptions = {
  ...(values.steps === undefined ? {} : { steps: Number(values.steps) }),
  without: values.without.split(",").filter((name) => name !== ""),
  skip: parseRanges(values.skip),
  shortLives: values["short-lives"],
  coldDisks: values["cold-disks"],
};
const tally = new Tally();
const interrupted = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => interrupted.abort());
const first = Number(values.seed);
let next = first;

function* jobs(): Generator<Job> {
  while (next < first + Number(values.runs) && tally.crashes < Number(values.crashes)) {
    if (interrupted.signal.aborted) return;
    yield { seed: next++, options };
  }
}

async function showFailure(failed: Result): Promise<void> {
  say(`\nseed ${failed.seed} failed: ${failed.error}`);
  if (values.shrink && !failed.hangs && !interrupted.signal.aborted) {
    const thread = new SeedThread();
    const small = await shrink(failed, options, (candidate) => thread.run({ seed: failed.seed, options: candidate }));
    const shown = await thread.run({ seed: failed.seed, options: small.options }, true);
    await thread.end();
    say(`shrunk by ${small.trials} runs: ${shown.error}`);
    for (const line of shown.trace.slice(-Number(values.trace))) say(`    ${line}`);
    say(replayCommand(failed.seed, small.options));
  } else {
    for (const line of failed.trace.slice(-Number(values.trace))) say(`    ${line}`);
    say(replayCommand(failed.seed, { ...options, steps: failed.steps }));
  }
}

let saidMs = performance.now();
await runJobs(jobs(), Number(values.jobs), (result) => {
  tally.add(result);
  if (values.hashes)
    say(`seed ${result.seed}: trace ${result.traceHash}, ${result.traceLines} lines, ${result.events} events`);
  if (!result.ok) say(`seed ${result.seed} failed: ${result.error?.split("\n")[0]}`);
  if (performance.now() - saidMs < PROGRESS_MS) return;
  saidMs = performance.now();
  say(`seeds from ${first}: ${tally.line()}`);
});
for (const failed of tally.failures.slice(0, 3)) await showFailure(failed);
for (const line of tally.table()) say(line);
say(`seeds ${first} to ${next - 1}: ${tally.line()}`);
if (interrupted.signal.aborted) say(`to go on: --seed ${next}`);
process.exitCode = tally.failures.length > 0 ? 1 : 0;
