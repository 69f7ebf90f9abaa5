/**
 * `npm run torture -- --scenario NAME [--rounds N] [--seed N] [--minutes N] [--guests N]`: real crashes of the real
 * processes, filesystems and databases, for as long as one likes, on this machine's kernel where that has nbd and we
 * are root, else in User-Mode-Linux guests. Prints what happened and what was measured; exit status 0 where nothing
 * was lost, no error was seen and every checker was content.
 * Several guests share the rounds, each with a seed of its own, counted up from the given one. Rounds that the time did
 * not allow are not run, and the figures say how many were.
 */
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { describe } from "../../src/base/errors.ts";
import { runOnKernel } from "../kernel/guest.ts";
import { Figures } from "./figures.ts";
import { resultMark, scenarios } from "./inside.ts";
import { powerLoss } from "./power-loss.ts";

const insidePath = fileURLToPath(new URL("inside.ts", import.meta.url));
const guestMemoryMib = 3072;
/** For what stands before the first round and after the last. */
const marginMs = 10 * 60_000;

interface Share {
  scenario: string;
  rounds: number;
  seed: number;
  seconds: number;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function usage(): never {
  const names = [...Object.keys(scenarios), "power-loss"].join(", ");
  process.stderr.write(`usage: torture --scenario NAME [--rounds N] [--seed N] [--minutes N] [--guests N]\n`);
  process.stderr.write(`scenarios: ${names}\n`);
  process.exit(2);
}

/** Adds to `figures` what the share came to, also where it failed; the answer: whether all was well. */
async function runShare(share: Share, figures: Figures): Promise<boolean> {
  if (share.scenario === "power-loss") {
    return await powerLoss({ ...share, figures, say, keepsEvidence: true }).then(
      () => true,
      (error: unknown) => {
        say(`seed ${share.seed}: ${describe(error)}`);
        return false;
      },
    );
  }
  let rest = "";
  const { status, kernelLog } = await runOnKernel({
    command: [process.execPath, insidePath, ...Object.values(share).map(String)],
    timeoutMs: share.seconds * 1000 + marginMs,
    memoryMib: guestMemoryMib,
    onOutput: (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith(resultMark)) figures.add(JSON.parse(line.slice(resultMark.length)) as Figures);
        else say(`seed ${share.seed}: ${line}`);
      }
    },
  });
  if (status !== 0) say(`seed ${share.seed}: status ${status}\n${kernelLog}`);
  return status === 0;
}

async function main(): Promise<number> {
  const options = {
    scenario: { type: "string", default: "" },
    rounds: { type: "string", default: "10" },
    seed: { type: "string", default: "1" },
    minutes: { type: "string", default: "600" },
    guests: { type: "string", default: "1" },
  } as const;
  const { values } = parseArgs({ options });
  const [rounds, seed, minutes, guests] = [values.rounds, values.seed, values.minutes, values.guests].map(Number);
  const isKnown = values.scenario === "power-loss" || Object.hasOwn(scenarios, values.scenario);
  if (!isKnown || ![rounds, seed, minutes, guests].every((value) => value > 0)) usage();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));
  const figures = new Figures();
  const startMs = performance.now();
  const shares = Array.from({ length: guests }, (_, index) => ({
    scenario: values.scenario,
    rounds: Math.floor(rounds / guests) + (index < rounds % guests ? 1 : 0),
    seed: seed + index,
    seconds: minutes * 60,
  }));
  const outcomes = await Promise.all(shares.map((share) => runShare(share, figures)));
  const tookMinutes = ((performance.now() - startMs) / 60_000).toFixed(1);
  say(`\n${values.scenario}, seeds ${seed} to ${seed + guests - 1}, ${tookMinutes} minutes`);
  for (const line of figures.lines()) say(`  ${line}`);
  const isWell = outcomes.every(Boolean);
  say(isWell ? "nothing was lost" : "FAILED");
  return isWell ? 0 : 1;
}

process.exitCode = await main();
