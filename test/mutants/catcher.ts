/**
 * Tries a mutant: runs the simulator with some seeds, or the mutant's own test file, in a patched copy, and tells
 * whether the mutant was caught. A mutant that does not even load, or breaks on a name that does not exist, proves
 * nothing about the oracle: it is "broken", and counts as a mistake in the list.
 */
import { spawn } from "node:child_process";
import { relative } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import type { Mutant } from "./mutant.ts";
import { type PatchedTree, repository } from "./patched-tree.ts";

export interface Verdict {
  outcome: "caught" | "survived" | "broken";
  /** The seed that caught it; undefined for a test file. */
  seed?: number;
  /** What the catcher said. */
  detail: string;
  seconds: number;
}

/** A run that takes longer, or that the caller aborts, is killed. */
interface Limits {
  timeoutMs: number;
  signal?: AbortSignal;
}

const replay = relative(repository, fileURLToPath(new URL("replay.ts", import.meta.url)));
const brokenPattern =
  /SyntaxError|ReferenceError|ERR_MODULE_NOT_FOUND|ERR_INVALID_TYPESCRIPT|is not a function|of undefined \(/;
const caughtPattern = /^seed (\d+): (.*)$/m;

/** Tries `seeds` in turn until one catches the mutant; for a mutant with a test file of its own that file is run. */
export async function tryMutant(
  tree: PatchedTree,
  mutant: Mutant,
  options: Limits & { seeds: readonly number[] },
): Promise<Verdict> {
  return await tree.with(mutant, async () => {
    const started = performance.now();
    const run = mutant.test === undefined ? runSeeds(tree, options) : runTestFile(tree, mutant.test, options);
    const verdict = await run;
    return { ...verdict, seconds: (performance.now() - started) / 1000 };
  });
}

/** Runs the seeds in an unpatched tree. */
export async function tryOriginal(
  tree: PatchedTree,
  options: Limits & { seeds: readonly number[] },
): Promise<Omit<Verdict, "seconds">> {
  return await runSeeds(tree, options);
}

async function runSeeds(
  tree: PatchedTree,
  options: Limits & { seeds: readonly number[] },
): Promise<Omit<Verdict, "seconds">> {
  const { code, output } = await runNode(tree, [replay, ...options.seeds.map(String)], options);
  const found = caughtPattern.exec(output);
  if (brokenPattern.test(output)) return { outcome: "broken", detail: lastLines(output) };
  if (code === 0) return { outcome: "survived", detail: "" };
  if (code === null) return { outcome: "survived", detail: "until its time was over" };
  if (found !== null) return { outcome: "caught", seed: Number(found[1]), detail: found[2] };
  return { outcome: "broken", detail: `ended with ${code}: ${lastLines(output)}` };
}

async function runTestFile(
  tree: PatchedTree,
  { file, name }: { file: string; name: string },
  options: Limits,
): Promise<Omit<Verdict, "seconds">> {
  const pattern = `--test-name-pattern=^${name.replaceAll(/[^\w ]/g, ".")}$`;
  const { code, output } = await runNode(tree, ["--test-reporter=tap", pattern, file], options);
  if (code === 0) return { outcome: "survived", detail: "" };
  const failed = /^\s*not ok \d+ - (.*)$/m.exec(output);
  if (failed === null || brokenPattern.test(output)) return { outcome: "broken", detail: lastLines(output) };
  return { outcome: "caught", detail: failed[1] };
}

async function runNode(
  tree: PatchedTree,
  commandArguments: readonly string[],
  options: Limits,
): Promise<{ code: number | null; output: string }> {
  const environment: NodeJS.ProcessEnv = { ...process.env, NODE_COMPILE_CACHE: `${tree.root}/compile-cache` };
  // A test file that is run by a test runs as a program of its own.
  delete environment["NODE_TEST_CONTEXT"];
  const child = spawn(process.execPath, commandArguments, {
    cwd: tree.root,
    env: environment,
    stdio: ["ignore", "pipe", "pipe"],
    timeout: options.timeoutMs,
    killSignal: "SIGKILL",
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const { promise, resolve, reject } = Promise.withResolvers<number | null>();
  child.on("error", reject);
  child.on("close", resolve);
  const [output, errors, code] = await Promise.all([text(child.stdout), text(child.stderr), promise]);
  return { code, output: output + errors };
}

function lastLines(output: string): string {
  return output.trim().split("\n").slice(-6).join(" | ");
}
