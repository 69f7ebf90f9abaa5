/** What the runner and the test of the mutants share: kept seeds, copies worked on side by side, how many must be caught. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Verdict } from "./catcher.ts";
import type { Mutant } from "./mutant.ts";
import { patch, PatchedTree, repository } from "./patched-tree.ts";

const LEAST_CAUGHT = 0.95;
export const seedsPath = join(import.meta.dirname, "seeds.json");

/** The seed that catches each mutant, by its name. */
export async function keptSeeds(): Promise<Record<string, number>> {
  return JSON.parse(await readFile(seedsPath, "utf8")) as Record<string, number>;
}

/** At least 95 % were caught, and none is a mistake in the list. */
export function caughtEnough(verdicts: readonly Verdict[]): boolean {
  const caught = verdicts.filter(({ outcome }) => outcome === "caught").length;
  return caught >= verdicts.length * LEAST_CAUGHT && verdicts.every(({ outcome }) => outcome !== "broken");
}

/** Throws where the text of a mutant does not stand exactly once in its file, or the mutant changes nothing. */
export async function mustApply(mutants: readonly Mutant[]): Promise<void> {
  for (const mutant of mutants) {
    const original = await readFile(join(repository, mutant.file), "utf8");
    if (patch(mutant, original) === original) throw new Error(`mutant ${mutant.name}: it changes nothing`);
  }
}

/** Calls `visit` for every mutant, each with a copy of the tree that nobody else uses at the time. */
export async function eachInParallel(
  mutants: readonly Mutant[],
  jobs: number,
  visit: (tree: PatchedTree, mutant: Mutant) => Promise<void>,
): Promise<void> {
  const waiting = [...mutants];
  const work = async (): Promise<void> => {
    const tree = await PatchedTree.make();
    try {
      for (let mutant = waiting.shift(); mutant !== undefined; mutant = waiting.shift()) await visit(tree, mutant);
    } finally {
      await tree.remove();
    }
  };
  const ended = await Promise.allSettled(Array.from({ length: Math.min(jobs, mutants.length) }, work));
  for (const result of ended) if (result.status === "rejected") throw result.reason;
}
