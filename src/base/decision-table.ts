/**
 * Decisions as data. A table says which facts are looked at, which words each may be, and which action each state asks
 * for; exactly one row matches every combination of facts. A combination that cannot come about has a row as well,
 * "impossible", and meeting it is a bug.
 *
 * Tables are frozen. They act on nothing: whoever looks up does what the row says, and nothing else.
 */
import { AssertionError } from "./assert.ts";

export type Facts = Record<string, string>;

export interface Row<F extends Facts, A extends string> {
  /** The state in words; unique among all tables. */
  readonly name: string;
  /** What must hold. A fact that is not named may be anything. */
  readonly when: { readonly [K in keyof F]?: F[K] | readonly F[K][] };
  readonly action: A;
}

export interface TableDescription<F extends Facts, A extends string> {
  readonly title: string;
  /** Every word that a fact may be. */
  readonly facts: { readonly [K in keyof F]: readonly F[K][] };
  /** What each action means, for people. */
  readonly actions: Readonly<Record<A, string>>;
  readonly rows: readonly Row<F, A | "impossible">[];
}

export class DecisionTable<F extends Facts, A extends string> implements TableDescription<F, A> {
  readonly title: string;
  readonly facts: { readonly [K in keyof F]: readonly F[K][] };
  readonly actions: Readonly<Record<A, string>>;
  readonly rows: readonly Row<F, A | "impossible">[];
  /** The conditions of each row, as lookups need them. */
  readonly #conditions: readonly (readonly [fact: string, words: readonly string[]][])[];

  constructor(description: TableDescription<F, A>) {
    this.title = description.title;
    this.facts = deepFreeze(description.facts);
    this.actions = deepFreeze(description.actions);
    this.rows = deepFreeze(description.rows);
    this.#conditions = this.rows.map(({ when }) =>
      Object.entries<string | readonly string[]>(when as Record<string, string | readonly string[]>).map(
        ([fact, wanted]) => [fact, [wanted].flat()],
      ),
    );
    Object.freeze(this);
  }

  /** The one row for what was found. None, several, or an impossible one is a bug. */
  decide(found: F): Row<F, A> {
    const rows = this.matching(found);
    const [row] = rows;
    if (rows.length === 1 && isPossible(row)) return row;
    const what = rows.length === 1 ? `says that this cannot be: ${row.name}` : `has ${rows.length} rows`;
    throw new AssertionError(`bug: the table "${this.title}" ${what}, for ${JSON.stringify(found)}`);
  }

  /** Every row that matches; one, for each of combinations(). */
  matching(found: F): Row<F, A | "impossible">[] {
    return this.rows.filter((_, index) =>
      this.#conditions[index].every(([fact, words]) => words.includes(found[fact])),
    );
  }

  /** The product of all facts. */
  combinations(): F[] {
    let combinations: Facts[] = [{}];
    for (const [fact, words] of Object.entries<readonly string[]>(this.facts)) {
      combinations = combinations.flatMap((found) => words.map((word) => ({ ...found, [fact]: word })));
    }
    return combinations as F[];
  }
}

function isPossible<F extends Facts, A extends string>(row: Row<F, A | "impossible">): row is Row<F, A> {
  return row.action !== "impossible";
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null) {
    for (const part of Object.values(value)) deepFreeze(part);
    Object.freeze(value);
  }
  return value;
}
