/** One thread of seed-pool.ts: runs the seeds that it is sent, with nothing of the machine in reach. */
import { parentPort } from "node:worker_threads";
import { poisonMachine } from "./poison.ts";
import { runSeed, type RunOptions } from "./run-seed.ts";

poisonMachine();
parentPort?.on("message", ({ seed, options }: { seed: number; options: RunOptions }) => {
  void runSeed(seed, options).then((result) => parentPort?.postMessage(result));
});
