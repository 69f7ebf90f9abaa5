/**
 * `npm test`: the checks of `npm run check`, then every test/**.test.ts by node:test, ending in one line of totals.
 * Suites that compute run side by side; those that start servers, guests or measure time run one after another, so
 * that they do not take each other's cores.
 * With arguments (paths or folders) it runs those tests alone and no checks.
 */
import { spawnSync } from "node:child_process";
import { globSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join, resolve } from "node:path";
import { run } from "node:test";
import type { EventData } from "node:test";
import { spec } from "node:test/reporters";

type Counts = EventData.TestSummary["counts"];

const root = join(import.meta.dirname, "..");
const testTimeoutMs = 900_000;

/** Folders whose tests start processes of their own. */
const serial = /^test\/(kernel|interop|csi|cli|e2e|bench|cluster|security|faults\/processes)\//;

/** Runs before everything else, as part of `npm run check`. */
const partOfChecks = "test/layers.test.ts";

function say(line: string): void {
  process.stdout.write(`==> ${line}\n`);
}

function testFiles(selection: readonly string[]): string[] {
  const files = globSync("test/**/*.test.ts", { cwd: root });
  if (selection.length === 0) return files.filter((file) => file !== partOfChecks).toSorted();
  const wanted = selection.map((path) => resolve(path));
  const matches = (file: string, path: string): boolean => file === path || file.startsWith(`${path}/`);
  return files.filter((file) => wanted.some((path) => matches(join(root, file), path))).toSorted();
}

/** Runs `files`, `concurrency` at a time, reporting to standard output as they go. */
async function runFiles(files: readonly string[], concurrency: number): Promise<Counts | undefined> {
  let counts: Counts | undefined;
  const events = run({ cwd: root, files: files.map((file) => join(root, file)), concurrency, timeout: testTimeoutMs });
  events.on("test:summary", (summary) => {
    if (summary.file === undefined) counts = summary.counts;
  });
  const report = events.compose(new spec()) as AsyncIterable<string>;
  for await (const text of report) process.stdout.write(text);
  return counts;
}

async function main(): Promise<void> {
  const selection = process.argv.slice(2);
  const total = { passed: 0, failed: 0, skipped: 0 };
  if (selection.length === 0) {
    say("checks: format, types, lint, dead code, layers (npm run check)");
    const { status } = spawnSync("npm", ["run", "--silent", "check"], { cwd: root, stdio: "inherit" });
    total[status === 0 ? "passed" : "failed"] += 1;
  }
  const files = testFiles(selection);
  const groups = [
    { name: "side by side", files: files.filter((file) => !serial.test(file)), concurrency: availableParallelism() },
    { name: "one after another", files: files.filter((file) => serial.test(file)), concurrency: 1 },
  ];
  if (files.length === 0) total.failed += 1;
  for (const group of groups.filter((candidate) => candidate.files.length > 0)) {
    say(`${group.files.length} test files, ${group.name}`);
    const counts = await runFiles(group.files, group.concurrency);
    total.passed += counts?.passed ?? 0;
    total.failed += counts === undefined ? 1 : counts.tests - counts.passed - counts.skipped;
    total.skipped += counts?.skipped ?? 0;
  }
  process.stdout.write(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
  process.exitCode = total.failed === 0 ? 0 : 1;
}

await main();
