/**
 * What the benchmark says: rows of one number each, printed as a table and written as JSON. A row with a goal says
 * whether it was met; a row without one has `goal` and `met` null.
 */
export interface Row {
  name: string;
  value: number;
  unit: string;
  /** Such as ">= 1"; null: measured without a goal. */
  goal: string | null;
  met: boolean | null;
  /** What the value is a ratio to, empty where it is none. */
  peer: string;
  /** Spread of the rounds, or what else belongs to the value. */
  note: string;
}

type Comparison = ">=" | "<=" | ">" | "<" | "=";

export interface Goal {
  comparison: Comparison;
  value: number;
}

export function row(
  name: string,
  value: number,
  unit: string,
  more: { goal?: Goal; peer?: string; note?: string } = {},
): Row {
  const { goal, peer = "", note = "" } = more;
  // The goal is held against what is printed.
  const shown = significant(value);
  return {
    name,
    value: shown,
    unit,
    goal: goal === undefined ? null : `${goal.comparison} ${goal.value}`,
    met: goal === undefined ? null : holds(shown, goal),
    peer,
    note,
  };
}

/** The middle value; the mean of the two in the middle where their number is even. NaN for none. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((left, right) => left - right);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Ratios of what was measured next to each other: their median, and their range as a note. */
export function ratioOf(ours: readonly number[], peers: readonly number[]): { value: number; note: string } {
  const ratios = ours.map((value, index) => value / peers[index]);
  const range = `${significant(Math.min(...ratios))} to ${significant(Math.max(...ratios))}`;
  return { value: median(ratios), note: `rounds ${range}` };
}

export function table(rows: readonly Row[]): string {
  const cells = rows.map(({ name, value, unit, goal, met, peer, note }) => [
    name,
    String(value),
    peer === "" ? unit : `${unit} ${peer}`,
    goal === null ? "" : `goal ${goal}: ${met === true ? "met" : "NOT MET"}`,
    note,
  ]);
  const widths = [0, 1, 2, 3].map((column) => Math.max(...cells.map((line) => line[column].length)));
  return cells
    .map((line) =>
      line.map((cell, column) => (column === 1 ? cell.padStart(widths[1]) : cell.padEnd(widths[column] ?? 0))),
    )
    .map((line) => line.join("  ").trimEnd())
    .join("\n");
}

/** Three significant digits, whole numbers from 100 on. */
function significant(value: number): number {
  return Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3));
}

function holds(value: number, { comparison, value: goal }: Goal): boolean {
  switch (comparison) {
    case ">=":
      return value >= goal;
    case "<=":
      return value <= goal;
    case ">":
      return value > goal;
    case "<":
      return value < goal;
    case "=":
      return value === goal;
  }
}
