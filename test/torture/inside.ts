/**
 * The part of a torture run that happens on one kernel, most often in a guest: one scenario, by seed, for so many
 * rounds or so long. After each line of progress, and at the end, what it came to so far as one line of JSON behind
 * `resultMark`.
 * As a program: `inside.ts SCENARIO ROUNDS SEED SECONDS`.
 */
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { torturePostgres, tortureSqlite } from "./databases.ts";
import { tortureByDisk } from "./disk-faults.ts";
import { Figures, monotonicMs } from "./figures.ts";
import { killAny, killServer } from "./kills.ts";
import type { Torture } from "./laboratory.ts";
import { tortureByStore } from "./store-faults.ts";
import { tortureByLog } from "./write-log.ts";

export const resultMark = "==figures ";

export const scenarios: Readonly<Record<string, (torture: Torture) => Promise<void>>> = {
  "kill-server": killServer,
  "kill-any": killAny,
  sqlite: tortureSqlite,
  postgres: torturePostgres,
  store: tortureByStore,
  disk: tortureByDisk,
  "write-log": tortureByLog,
};

async function main(name: string, rounds: number, seed: number, seconds: number): Promise<void> {
  const figures = new Figures();
  const say = (line: string): void => {
    const { counts, samples } = figures;
    process.stdout.write(`${line}\n${resultMark}${JSON.stringify({ counts, samples })}\n`);
  };
  const torture: Torture = {
    rounds,
    random: new SeededRandom(seed),
    figures,
    endMs: monotonicMs() + seconds * 1000,
    say,
  };
  try {
    await scenarios[name](torture);
    say("all rounds done");
  } catch (error) {
    say(describe(error));
    process.exitCode = 1;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [name, ...numbers] = process.argv.slice(2);
  const [rounds, seed, seconds] = numbers.map(Number);
  await main(name, rounds, seed, seconds);
  process.exit();
}
