/** One thread of seed-pool.ts: runs the seeds that it is sent, with nothing of the machine in reach. */
import { parentPort } from "node:worker_threads";
import { poisonMachine } from "./poison.ts";
import { runSeed, type RunOptions } from "./run-seed.ts";

const STACK_LINES = 20;

poisonMachine();
parentPort?.on("message", ({ seed, options, stacks }: { seed: number; options: RunOptions; stacks: boolean }) => {
  // Worlds make errors by the thousand, and half of what one costs is its stack.
  Error.stackTraceLimit = stacks ? STACK_LINES : 0;
  void runSeed(seed, options).then((result) => parentPort?.postMessage(result));
});
