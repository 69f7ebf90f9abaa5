/**
 * The oracle is tested too: every mutant of all.ts is applied to a copy of the source and must be caught by the seed
 * that seeds.json keeps for it, while the source itself passes all these seeds. Where the worlds of the simulator have
 * changed since the seeds were kept, some more are tried; `npm run mutants -- --write` keeps new ones.
 */
import assert from "node:assert/strict";
import { availableParallelism } from "node:os";
import { test } from "node:test";
import { allMutants } from "./all.ts";
import { tryMutant, tryOriginal, type Verdict } from "./catcher.ts";
import { PatchedTree } from "./patched-tree.ts";
import { caughtEnough, eachInParallel, keptSeeds, mustApply } from "./session.ts";

/** A guard against a world that never ends, not against a slow machine. */
const timeoutMs = 600_000;
const furtherSeeds = Array.from({ length: 12 }, (_, index) => index + 1);

test("every mutant has a name of its own and changes one place", async () => {
  assert.equal(new Set(allMutants.map(({ name }) => name)).size, allMutants.length);
  await mustApply(allMutants);
});

test("the source passes every seed that catches a mutant", async () => {
  const seeds = [...new Set(Object.values(await keptSeeds()))];
  const tree = await PatchedTree.make();
  try {
    const verdict = await tryOriginal(tree, { seeds, timeoutMs });
    assert.deepEqual(verdict, { outcome: "survived", detail: "" });
  } finally {
    await tree.remove();
  }
});

test("at least 95 % of the mutants are caught", async (t) => {
  const kept = await keptSeeds();
  const verdicts: Verdict[] = [];
  await eachInParallel(allMutants, availableParallelism(), async (tree, mutant) => {
    const seeds = mutant.name in kept ? [kept[mutant.name], ...furtherSeeds] : furtherSeeds;
    const verdict = await tryMutant(tree, mutant, { seeds, timeoutMs });
    verdicts.push(verdict);
    const isStale = verdict.seed !== undefined && verdict.seed !== kept[mutant.name];
    if (isStale) t.diagnostic(`${mutant.name}: caught by seed ${verdict.seed}, not by the one that is kept`);
    if (verdict.outcome !== "caught") t.diagnostic(`${mutant.name}: ${verdict.outcome} ${verdict.detail}`);
  });
  const caught = verdicts.filter(({ outcome }) => outcome === "caught").length;
  t.diagnostic(`${caught} of ${verdicts.length} mutants caught`);
  assert.ok(caughtEnough(verdicts), `${caught} of ${verdicts.length} mutants caught`);
});
