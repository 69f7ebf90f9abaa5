/**
 * Makes a failing run small: fewer steps, fewer kinds of faults, fewer actions, as long as it still fails. What is left
 * out changes nothing in what the rest draws, though it may change what comes of it: a failure of the same kind counts.
 */
import type { Result, RunOptions } from "./run-seed.ts";
import { faultNames } from "./swarm.ts";

export interface Shrunk {
  options: RunOptions;
  result: Result;
  trials: number;
}

/** `run` runs the seed with options; at most `limit` runs are made. */
export async function shrink(
  failed: Result,
  options: RunOptions,
  run: (options: RunOptions) => Promise<Result>,
  limit = 120,
): Promise<Shrunk> {
  const best: Shrunk = { options: { ...options, steps: failed.steps }, result: failed, trials: 0 };
  const attempt = async (candidate: RunOptions): Promise<boolean> => {
    if (best.trials >= limit) return false;
    best.trials += 1;
    const result = await run(candidate);
    if (result.ok || kindOf(result) !== kindOf(failed)) return false;
    best.options = candidate;
    best.result = result;
    return true;
  };
  await shrinkSteps(best, attempt);
  for (const name of faultNames) {
    const without = best.options.without ?? [];
    if (best.result.coverage.some(([what]) => what === `world with ${name}`)) {
      await attempt({ ...best.options, without: [...without, name] });
    }
  }
  await shrinkActions(best, attempt);
  return best;
}

async function shrinkSteps(best: Shrunk, attempt: (options: RunOptions) => Promise<boolean>): Promise<void> {
  let passing = 0;
  while (passing + 1 < best.options.steps!) {
    const steps = Math.floor((passing + best.options.steps!) / 2);
    if (!(await attempt({ ...best.options, steps }))) passing = steps;
    if (best.trials >= 12) return;
  }
}

/** Leaves out runs of actions: halves, quarters, … */
async function shrinkActions(best: Shrunk, attempt: (options: RunOptions) => Promise<boolean>): Promise<void> {
  const steps = best.options.steps!;
  for (let size = Math.ceil(steps / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let from = 0; from < steps; from += size) {
      const skip = new Set(best.options.skip ?? []);
      const before = skip.size;
      for (let step = from; step < Math.min(steps, from + size); step += 1) skip.add(step);
      if (skip.size > before) await attempt({ ...best.options, skip });
    }
  }
}

/** The message without its numbers. */
function kindOf({ error }: Result): string {
  return (error ?? "")
    .split("\n")[0]
    .replaceAll(/[0-9]+/g, "")
    .slice(0, 50);
}

/** The command that runs it again. */
export function replayCommand(seed: number, options: RunOptions): string {
  const parts = [`npm run simulate -- --seed ${seed} --runs 1`];
  if (options.steps !== undefined) parts.push(`--steps ${options.steps}`);
  if (options.without !== undefined && options.without.length > 0) parts.push(`--without ${options.without.join(",")}`);
  if (options.shortLives === true) parts.push("--short-lives");
  if (options.coldDisks === true) parts.push("--cold-disks");
  if (options.skip !== undefined && options.skip.size > 0) parts.push(`--skip ${ranges(options.skip)}`);
  return parts.join(" ");
}

/** "3-7,9" */
function ranges(numbers: ReadonlySet<number>): string {
  const groups: { from: number; to: number }[] = [];
  for (const number of [...numbers].toSorted((left, right) => left - right)) {
    const last = groups.at(-1);
    if (last?.to === number - 1) last.to = number;
    else groups.push({ from: number, to: number });
  }
  return groups.map(({ from, to }) => (from === to ? `${from}` : `${from}-${to}`)).join(",");
}

/** The reverse of what replayCommand writes. */
export function parseRanges(text: string): Set<number> {
  const numbers = new Set<number>();
  for (const part of text.split(",").filter((piece) => piece !== "")) {
    const [from, to = from] = part.split("-").map(Number);
    for (let number = from; number <= to; number += 1) numbers.add(number);
  }
  return numbers;
}
