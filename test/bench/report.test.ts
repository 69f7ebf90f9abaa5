import assert from "node:assert/strict";
import { test } from "node:test";
import { median, ratioOf, row, table } from "./report.ts";

test("a goal is held against the value as it is printed", () => {
  const goal = { comparison: "<=", value: 1.5 } as const;
  assert.equal(row("flush", 1.5004, "×", { goal }).met, true);
  assert.equal(row("flush", 1.52, "×", { goal }).met, false);
  assert.equal(row("cached", 1.0004, "×", { goal: { comparison: ">", value: 1 } }).met, false);
  assert.equal(row("idle", 0, "requests", { goal: { comparison: "=", value: 0 } }).met, true);
  assert.deepEqual(row("plain", 1234.5, "ms"), {
    name: "plain",
    value: 1235,
    unit: "ms",
    goal: null,
    met: null,
    peer: "",
    note: "",
  });
});

test("ratios are taken between neighbours in time, and their median counts", () => {
  assert.deepEqual(ratioOf([10, 1, 30], [5, 1, 10]), { value: 2, note: "rounds 1 to 3" });
  assert.equal(median([4, 1]), 2.5);
  assert.ok(Number.isNaN(median([])));
});

test("a value that could not be measured meets no goal", () => {
  assert.equal(row("nothing", Number.NaN, "ms", { goal: { comparison: "<", value: 1000 } }).met, false);
});

test("the table says which goals were not met", () => {
  const goal = { comparison: "<", value: 400 } as const;
  const lines = table([
    row("memory", 512, "MiB", { goal, note: "long" }),
    row("ratio", 2, "×", { peer: "nbdkit file" }),
  ]);
  assert.match(lines, /^memory +512 {2}MiB +goal < 400: NOT MET {2}long$/m);
  assert.match(lines, /^ratio +2 {2}× nbdkit file$/m);
});
