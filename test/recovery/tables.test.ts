/** The tables of what a start finds, as such: complete, without contradictions, frozen, and as the document has them. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { DecisionTable } from "../../src/base/decision-table.ts";
import { architecturePath, startTables, withStartTables } from "../docs/start-tables.ts";

/** How many rows match each combination of facts, where that is not one. */
function faults(table: DecisionTable<Record<string, string>, string>): string[] {
  return table.combinations().flatMap((found) => {
    const count = table.matching(found).length;
    return count === 1 ? [] : [`${table.title} ${JSON.stringify(found)}: ${count} rows`];
  });
}

const tables = startTables.map((table) => {
  assert.ok(table instanceof DecisionTable);
  return table as DecisionTable<Record<string, string>, string>;
});

test("every combination of facts has exactly one row, in every table", () => {
  assert.ok(tables.length >= 14);
  assert.deepEqual(tables.flatMap(faults), []);
});

test("every row is one that some combination needs, has an action that is explained, and a name of its own", () => {
  const names = tables.flatMap(({ rows }) => rows.map(({ name }) => name));
  assert.equal(new Set(names).size, names.length);
  for (const table of tables) {
    const needed = new Set(table.combinations().map((found) => table.matching(found)[0].name));
    for (const { name, action, when } of table.rows) {
      assert.ok(needed.has(name), name);
      assert.ok(action === "impossible" || action in table.actions, name);
      for (const [fact, words] of Object.entries(when)) {
        for (const word of [words ?? []].flat())
          assert.ok(table.facts[fact].includes(word), `${name}: ${fact} ${word}`);
      }
    }
    const used = new Set(table.rows.map(({ action }) => action));
    for (const action of Object.keys(table.actions)) assert.ok(used.has(action), `${table.title}: ${action}`);
  }
});

test("tables cannot be changed", () => {
  for (const table of tables) {
    for (const part of [table, table.rows, table.rows[0], table.rows[0].when, table.facts, table.actions]) {
      assert.ok(Object.isFrozen(part), table.title);
    }
  }
});

test("a table that lacks a row, has one too many, or is asked for what cannot be, says so", () => {
  const facts = { light: ["red", "green"] } as const;
  const actions = { stop: "stop", go: "go" };
  const stop = { name: "it is red", when: { light: "red" }, action: "stop" } as const;
  const go = { name: "it shines", when: {}, action: "go" } as const;
  const never = { name: "it is green", when: { light: "green" }, action: "impossible" } as const;
  const make = (rows: readonly (typeof stop | typeof go | typeof never)[]) =>
    new DecisionTable<{ light: "red" | "green" }, "stop" | "go">({ title: "light", facts, actions, rows });
  assert.throws(() => make([stop]).decide({ light: "green" }), /bug: .*has 0 rows/);
  assert.throws(() => make([stop, go]).decide({ light: "red" }), /bug: .*has 2 rows/);
  assert.throws(() => make([stop, never]).decide({ light: "green" }), /bug: .*cannot be: it is green/);
  assert.equal(make([stop, never]).decide({ light: "red" }).action, "stop");
});

test("docs/architecture.md has the tables that the program has (else: npm run render)", () => {
  const text = readFileSync(architecturePath, "utf8");
  assert.equal(text, withStartTables(text));
});
