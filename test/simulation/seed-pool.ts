/** Runs seeds in several threads, each in a world of its own; what comes of a seed depends on nothing but the seed. */
import { setFlagsFromString } from "node:v8";
import { Worker } from "node:worker_threads";
import { failedResult, type Result, type RunOptions } from "./run-seed.ts";

// Without it the garbage collector marks the whole heap for every 64 MiB of Buffers that were made and forgotten since:
// measured, a fifth of all processor time.
setFlagsFromString("--external-memory-accounted-in-global-limit");

export interface Job {
  seed: number;
  options: RunOptions;
}

/** A world takes a second. One that takes so long turns in a circle in which no timer fires, and will do so for ever. */
const WORLD_LIMIT_MS = 120_000;

/** One thread, which runs one seed at a time. */
export class SeedThread {
  readonly #limitMs: number;
  #worker: Worker | undefined;

  constructor(limitMs = WORLD_LIMIT_MS) {
    this.#limitMs = limitMs;
  }

  /** `stacks`: errors say where they come from, which changes nothing else and takes its time. */
  async run(job: Job, stacks = false): Promise<Result> {
    this.#worker ??= new Worker(new URL("seed-thread.ts", import.meta.url), {
      resourceLimits: { maxYoungGenerationSizeMb: 96 },
    });
    const { promise, resolve, reject } = Promise.withResolvers<Result | undefined>();
    const worker = this.#worker;
    worker.removeAllListeners();
    const watch = setTimeout(resolve, this.#limitMs, undefined);
    worker.on("error", reject);
    worker.on("exit", (code) => reject(new Error(`the thread of seed ${job.seed} ended with code ${code}`)));
    worker.on("message", resolve);
    worker.postMessage({ ...job, stacks });
    try {
      const result = await promise;
      if (result !== undefined) return result;
    } finally {
      clearTimeout(watch);
    }
    await this.end();
    const error = `the world has not ended after ${this.#limitMs / 1000} s: it turns in a circle`;
    return { ...failedResult(job.seed, job.options, error), hangs: true };
  }

  async end(): Promise<void> {
    this.#worker?.removeAllListeners();
    await this.#worker?.terminate();
    this.#worker = undefined;
  }
}

/** Runs a job, and where it fails once more for its stacks. */
async function runExplained(thread: SeedThread, job: Job): Promise<Result> {
  const result = await thread.run(job);
  if (result.ok || result.hangs) return result;
  const again = await thread.run(job, true);
  if (!again.ok && again.traceHash === result.traceHash) return again;
  return { ...result, error: `${result.error}\n(the seed took other steps when it was run again)` };
}

/** Runs jobs as they are drawn until there are none left; `done` is called with every result, in order of ending. */
export async function runJobs(jobs: Iterator<Job>, threads: number, done: (result: Result) => void): Promise<void> {
  const runThread = async (): Promise<void> => {
    const thread = new SeedThread();
    try {
      for (let job = jobs.next(); job.done !== true; job = jobs.next()) done(await runExplained(thread, job.value));
    } finally {
      await thread.end();
    }
  };
  await Promise.all(Array.from({ length: threads }, runThread));
}
