/** Runs seeds in several threads, each in a world of its own; what comes of a seed depends on nothing but the seed. */
import { Worker } from "node:worker_threads";
import type { Result, RunOptions } from "./run-seed.ts";

export interface Job {
  seed: number;
  options: RunOptions;
}

/** Runs jobs as they are drawn until there are none left; `done` is called with every result, in order of ending. */
export async function runJobs(
  jobs: Iterator<Job>,
  threads: number,
  done: (result: Result, job: Job) => void,
): Promise<void> {
  await Promise.all(Array.from({ length: threads }, () => runThread(jobs, done)));
}

async function runThread(jobs: Iterator<Job>, done: (result: Result, job: Job) => void): Promise<void> {
  const worker = new Worker(new URL("seed-thread.ts", import.meta.url));
  try {
    await new Promise<void>((resolve, reject) => {
      let job: Job | undefined;
      const next = (): void => {
        const drawn = jobs.next();
        if (drawn.done === true) return resolve();
        job = drawn.value;
        worker.postMessage(job);
      };
      worker.on("error", reject);
      worker.on("exit", (code) => reject(new Error(`the thread of seed ${job?.seed} ended with code ${code}`)));
      worker.on("message", (result: Result) => {
        try {
          done(result, job!);
          next();
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)));
        }
      });
      next();
    });
  } finally {
    await worker.terminate();
  }
}

/** One run in a thread of its own. */
export async function runOne(seed: number, options: RunOptions): Promise<Result> {
  const results: Result[] = [];
  await runJobs([{ seed, options }].values(), 1, (result) => results.push(result));
  return results[0];
}
