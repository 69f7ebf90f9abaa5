/**
 * `npm run faults -- <what>`: the long runs of the tests in this folder. Prints what happened as JSON; ends with 1 at the
 * first thing that must not be.
 *
 *   races [--puts 100000] [--seed 1]      racing owners in virtual time, a fifth of the replies of conditional puts lost
 *   proxied [--puts 5000] [--seed 1]      the same in real time on a real S3 server behind a proxy
 *   frozen [--owners 100] [--seed 1]      owners frozen by SIGSTOP for longer than a fail-over, on a real S3 server
 *   outage [--minutes 10]                 a real S3 server stopped under load, in real time
 *   errors [--minutes 60]                 half of a real S3 server's answers errors, in real time
 *   hung [--minutes 5]                    a real S3 server that takes requests and never answers them, in real time
 *   flood [--turns 10]                    what garbage and silent connections cost another client
 */
import { parseArgs } from "node:util";
import { flood } from "./flood.ts";
import { freezeOwners } from "./frozen-owners.ts";
import { memoryRaces } from "./memory-races.ts";
import { proxiedRaces } from "./proxied-races.ts";
import { realOutage } from "./real-outage.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    puts: { type: "string" },
    seed: { type: "string", default: "1" },
    owners: { type: "string", default: "100" },
    minutes: { type: "string" },
    turns: { type: "string", default: "10" },
  },
});

const seed = Number(values.seed);
const say = (line: string): void => void process.stdout.write(`${line}\n`);

const runs: Readonly<Record<string, () => Promise<object>>> = {
  races: () => memoryRaces(Number(values.puts ?? 100_000), seed),
  proxied: () => proxiedRaces(Number(values.puts ?? 5000), seed),
  frozen: () => freezeOwners({ owners: Number(values.owners), together: 10, seed }),
  outage: () => realOutage({ trouble: "away", minutes: Number(values.minutes ?? 10), say }),
  errors: () => realOutage({ trouble: "errors", minutes: Number(values.minutes ?? 60), say }),
  hung: () => realOutage({ trouble: "hung", minutes: Number(values.minutes ?? 5), say }),
  flood: () => flood(Number(values.turns)),
};

const run = runs[positionals[0] ?? ""];
if (run === undefined) {
  say(`say what to run: ${Object.keys(runs).join(", ")}`);
  process.exitCode = 2;
} else {
  const beganMs = performance.now();
  const result = await run();
  say(JSON.stringify({ ...result, seconds: Math.round((performance.now() - beganMs) / 1000) }, null, 2));
}
