/**
 * `npm run torture -- --scenario NAME [--rounds N] [--seed N] [--minutes N] [--guests N]`: real crashes of the real
 * processes, filesystems and databases, for as long as one likes, on this machine's kernel where that has nbd and we
 * are root, else in User-Mode-Linux guests. Prints what happened and what was measured; exit status 0 where nothing
 * was lost, no error was seen and every checker was content.
 * Several guests share the rounds, each with a seed of its own, counted up from the given one. Rounds that the time did
 * not allow are not run, and the figures say how many were. Ctrl-C ends a run with the figures of its last progress.
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

/** Keeps in `figures` what the share has come to, also where it fails; the answer: whether all was well. */
async function runShare(share: Share, figures: Map<Share, Figures>): Promise<boolean> {
  const own = new Figures();
  figures.set(share, own);
  if (share.scenario === "power-loss") {
    return await powerLoss({ ...share, figures: own, say, keepsEvidence: true }).then(
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
        if (line.startsWith(resultMark)) figures.set(share, new Figures(line.slice(resultMark.length)));
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
  const [rounds, seed, timeMinutes, guests] = [values.rounds, values.seed, values.minutes, values.guests].map(Number);
  const isKnown = values.scenario === "power-loss" || Object.hasOwn(scenarios, values.scenario);
  if (!isKnown || ![rounds, seed, timeMinutes, guests].every((value) => value > 0)) usage();
  const figures = new Map<Share, Figures>();
  const startMs = performance.now();
  const tell = (outcome: string): void => {
    const minutes = ((performance.now() - startMs) / 60_000).toFixed(1);
    const sum = new Figures();
    for (const each of figures.values()) sum.add(each);
    say(`\n${values.scenario}, seeds ${seed} to ${seed + guests - 1}, ${minutes} minutes`);
    for (const line of sum.lines()) say(`  ${line}`);
    say(outcome);
  };
  const end = (): void => {
    tell("ended by a signal, after the rounds above");
    process.exit(130);
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, end);
  const shares = Array.from({ length: guests }, (_, index) => ({
    scenario: values.scenario,
    rounds: Math.floor(rounds / guests) + (index < rounds % guests ? 1 : 0),
    seed: seed + index,
    seconds: timeMinutes * 60,
  }));
  const outcomes = await Promise.all(shares.map((share) => runShare(share, figures)));
  const isWell = outcomes.every(Boolean);
  tell(isWell ? "nothing was lost" : "FAILED");
  return isWell ? 0 : 1;
}

process.exitCode = await main();
