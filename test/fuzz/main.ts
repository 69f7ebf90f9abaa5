/**
 * npm run fuzz -- [--target NAME] [--seed N] [--cases M] [--input BASE64] [--unguided]
 * Fuzzes one doorway, or all of them one after another, and prints one line for each. The same numbers give the same
 * cases. A failure prints the input; --input runs it alone. The campaigns run when they are named.
 */
import { parseArgs } from "node:util";
import { campaigns } from "./campaigns.ts";
import { fuzz } from "./fuzzer.ts";
import { targets } from "./targets.ts";

const DEFAULT_CASES = 20_000;

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

async function runTarget(name: string, options: { seed: number; cases: number; guided: boolean }): Promise<void> {
  const target = await targets[name]();
  const started = performance.now();
  try {
    const report = await fuzz(target, options);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const outcomes = Object.entries(report.outcomes).map(([outcome, count]) => `${outcome}=${count}`);
    const { cases, corpus, blocks } = report;
    say(`${name}: ${cases} cases, 0 failures, ${outcomes.join(" ")} corpus=${corpus} blocks=${blocks} ${seconds} s`);
  } finally {
    await target.close?.();
  }
}

async function runCampaign(name: string, options: { seed: number; cases: number | undefined }): Promise<void> {
  const started = performance.now();
  const figures = await campaigns[name](options);
  say(`${name}: ${figures} ${((performance.now() - started) / 1000).toFixed(1)} s`);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      target: { type: "string" },
      seed: { type: "string", default: "1" },
      cases: { type: "string" },
      input: { type: "string" },
      unguided: { type: "boolean", default: false },
    },
  });
  const seed = Number(values.seed);
  const cases = values.cases === undefined ? undefined : Number(values.cases);
  const known = Object.keys(targets);
  const name = values.target;
  if (name !== undefined && Object.hasOwn(campaigns, name)) return await runCampaign(name, { seed, cases });
  if (name !== undefined && !known.includes(name)) {
    say(`no target is called ${name}: use one of ${[...known, ...Object.keys(campaigns)].join(", ")}`);
    process.exitCode = 2;
    return;
  }
  if (name !== undefined && values.input !== undefined) {
    const target = await targets[name]();
    try {
      say(`${name}: ${await target.run(Buffer.from(values.input, "base64"))}`);
    } finally {
      await target.close?.();
    }
    return;
  }
  for (const each of name === undefined ? known : [name]) {
    await runTarget(each, { seed, cases: cases ?? DEFAULT_CASES, guided: !values.unguided });
  }
}

await main();
