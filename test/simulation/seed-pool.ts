/** Runs seeds in several threads, each in a world of its own; what comes of a seed depends on nothing but the seed. */
import { Worker } from "node:worker_threads";
import type { Result, RunOptions } from "./run-seed.ts";

export interface Job {
  seed: number;
  options: RunOptions;
}

/** One thread, which runs one seed at a time. */
export class SeedThread {
  readonly #worker = new Worker(new URL("seed-thread.ts", import.meta.url), {
    resourceLimits: { maxYoungGenerationSizeMb: 96 },
  });

  run(job: Job): Promise<Result> {
    const { promise, resolve, reject } = Promise.withResolvers<Result>();
    const worker = this.#worker;
    worker.removeAllListeners();
    worker.on("error", reject);
    worker.on("exit", (code) => reject(new Error(`the thread of seed ${job.seed} ended with code ${code}`)));
    worker.on("message", resolve);
    worker.postMessage(job);
    return promise;
  }

  async end(): Promise<void> {
    this.#worker.removeAllListeners();
    await this.#worker.terminate();
  }
}

/** Runs jobs as they are drawn until there are none left; `done` is called with every result, in order of ending. */
export async function runJobs(jobs: Iterator<Job>, threads: number, done: (result: Result) => void): Promise<void> {
  const runThread = async (): Promise<void> => {
    const thread = new SeedThread();
    try {
      for (let job = jobs.next(); job.done !== true; job = jobs.next()) done(await thread.run(job.value));
    } finally {
      await thread.end();
    }
  };
  await Promise.all(Array.from({ length: threads }, runThread));
}
