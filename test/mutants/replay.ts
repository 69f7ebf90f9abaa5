/**
 * Runs worlds of the simulator by seed until one fails: `node test/mutants/replay.ts SEED…`, in a patched copy of the
 * tree. Ends with 0 where all held, and with 1 where one did not; the output then names the seed and the fault.
 */
import { runSeed } from "../simulation/run-seed.ts";

for (const seed of process.argv.slice(2).map(Number)) {
  const { ok, error } = await runSeed(seed);
  if (ok) continue;
  process.stdout.write(`seed ${seed}: ${error?.split("\n")[0]}\n`);
  process.exit(1);
}
