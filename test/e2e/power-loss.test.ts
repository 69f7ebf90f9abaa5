/** The loss of power, as npm run torture makes it many times: a guest is cut off in the midst of commits. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Figures } from "../torture/figures.ts";
import { powerLoss } from "../torture/power-loss.ts";

test("databases hold every commit that was acknowledged before the power was lost", async () => {
  const figures = new Figures();
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  await powerLoss({ rounds: 1, seed: 3, seconds: 600, figures, say });
  assert.equal(figures.countOf("power losses"), 1);
  assert.ok(figures.countOf("acknowledged commits") > 0);
});
