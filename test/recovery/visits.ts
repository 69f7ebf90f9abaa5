/** Which rows of which tables real code has looked up, seen from outside: the tables know nothing of it. */
import { mock } from "node:test";
import { DecisionTable, type Facts, type Row } from "../../src/base/decision-table.ts";

/** Names of the rows looked up so far in this process. Call it once, before the first look-up. */
export function watchTables(): Set<string> {
  const visited = new Set<string>();
  const original = Reflect.get(DecisionTable.prototype, "decide") as (
    this: unknown,
    found: Facts,
  ) => Row<Facts, string>;
  mock.method(DecisionTable.prototype, "decide", function decide(this: unknown, found: Facts) {
    const row = original.call(this, found);
    visited.add(row.name);
    return row;
  });
  return visited;
}

/** Rows of `table` that can come about and are not in `visited`. */
export function unvisited(
  table: { rows: readonly { name: string; action: string }[] },
  visited: ReadonlySet<string>,
): string[] {
  return table.rows.filter(({ name, action }) => action !== "impossible" && !visited.has(name)).map(({ name }) => name);
}
