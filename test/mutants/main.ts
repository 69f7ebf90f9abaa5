/**
 * `npm run mutants -- [--only NAME] [--jobs J] [--seed S] [--runs M] [--write]`: applies each mutant of all.ts to a copy
 * of the source and runs the simulator on it with the seeds S … S + M − 1 until one catches it, at most two minutes.
 * Prints what caught each one, and ends with 1 where fewer than 95 % were caught. With --write, the seeds that caught
 * them are kept in seeds.json, which `npm test` replays.
 */
import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { allMutants } from "./all.ts";
import { tryMutant, type Verdict } from "./catcher.ts";
import type { Mutant } from "./mutant.ts";
import type { PatchedTree } from "./patched-tree.ts";
import { caughtEnough, eachInParallel, keptSeeds, mustApply, seedsPath } from "./session.ts";

const timeoutMs = 120_000;

const { values } = parseArgs({
  options: {
    only: { type: "string", multiple: true },
    jobs: { type: "string", default: "2" },
    runs: { type: "string", default: "40" },
    seed: { type: "string", default: "1" },
    write: { type: "boolean", default: false },
  },
});

const selected = allMutants.filter(({ name }) => values.only === undefined || values.only.includes(name));
const first = Number(values.seed);
const pool = Array.from({ length: Number(values.runs) }, (_, index) => first + index);
const seeds = await keptSeeds();
const verdicts: Verdict[] = [];

const interrupted = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => interrupted.abort());

async function hunt(tree: PatchedTree, mutant: Mutant): Promise<void> {
  const verdict = await tryMutant(tree, mutant, { seeds: pool, timeoutMs, signal: interrupted.signal });
  verdicts.push(verdict);
  if (verdict.seed !== undefined) seeds[mutant.name] = verdict.seed;
  const by = verdict.seed === undefined ? (mutant.test?.file ?? "") : `seed ${verdict.seed}`;
  process.stdout.write(
    `${verdict.outcome.padEnd(9)} ${mutant.name.padEnd(36)} ${verdict.seconds.toFixed(1).padStart(6)} s  ${by}  ${verdict.detail}\n`,
  );
}

await mustApply(selected);
await eachInParallel(selected, Number(values.jobs), hunt);
if (values.write) {
  const kept = allMutants.flatMap(({ name }) => (name in seeds ? [[name, seeds[name]]] : []));
  await writeFile(seedsPath, `${JSON.stringify(Object.fromEntries(kept), undefined, 2)}\n`);
}
const caught = verdicts.filter(({ outcome }) => outcome === "caught").length;
process.stdout.write(`${caught} of ${verdicts.length} mutants caught\n`);
process.exitCode = caughtEnough(verdicts) ? 0 : 1;
