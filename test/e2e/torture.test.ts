/**
 * A slice of what `npm run torture` does at any length: databases and verified loads on real volumes while processes and
 * machines die and journals are damaged by hand. The scenarios themselves throw where anything that was acknowledged is
 * lost, an error reached a user, or a checker is not content.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { tortureSqlite } from "../torture/databases.ts";
import { tortureByDisk } from "../torture/disk-faults.ts";
import { Figures } from "../torture/figures.ts";
import type { Torture } from "../torture/laboratory.ts";
import { tortureByLog } from "../torture/write-log.ts";

const timeout = 400_000;

/** So many rounds of the scenario, and what they counted. */
async function rounds(count: number, scenario: (torture: Torture) => Promise<void>): Promise<Figures> {
  const figures = new Figures();
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  await scenario({ rounds: count, random: new SeededRandom(5), figures, endMs: Number.POSITIVE_INFINITY, say });
  for (const line of figures.lines()) say(line);
  return figures;
}

kernelTests({ url: import.meta.url, name: "real crashes", timeoutMs: 890_000, memoryMib: 3072 }, () => {
  test(
    "databases hold every commit after their death with the machine's, and with the server's",
    { timeout },
    async () => {
      const figures = await rounds(2, tortureSqlite);
      assert.equal(figures.countOf("deaths of databases, each with the server"), 8);
      assert.ok(figures.countOf("acknowledged commits") >= 16);
    },
  );

  test(
    "what the kernel's own log of writes says was flushed is there after the loss of the machine",
    { timeout },
    async () => {
      const figures = await rounds(1, tortureByLog);
      assert.ok(figures.countOf("replays to a flush") > 0);
    },
  );

  test(
    "a journal damaged by hand costs no flush that is in the store, and mixes no two moments",
    { timeout },
    async () => {
      const figures = await rounds(1, (torture) => tortureByDisk(torture, ["journal damaged by hand"]));
      assert.equal(figures.countOf("rounds: journal damaged by hand"), 1);
    },
  );
});
