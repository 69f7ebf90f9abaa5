/**
 * The tables of what a start finds, in docs/architecture.md, made from the tables that the program looks up. Running
 * this file writes them; test/recovery/tables.test.ts holds the document against the program.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deviceTable, reopenTable, restartTable, reuseTable } from "../../src/attachment/restart.ts";
import type { TableDescription } from "../../src/base/decision-table.ts";
import { formatTable, publishTable, stagingTable } from "../../src/csi/mount-tables.ts";
import { nameTable, releaseTable } from "../../src/volume/name-tables.ts";
import {
  chainTable,
  checkpointTable,
  claimTable,
  journalTable,
  logTable,
  lossTable,
  publicationTable,
  startTable,
  tailTable,
} from "../../src/volume/recovery-tables.ts";

type AnyTable = TableDescription<Record<string, string>, string>;

/** Every table of the program, in the order of the document. */
export const startTables: readonly AnyTable[] = [
  nameTable,
  releaseTable,
  publicationTable,
  claimTable,
  startTable,
  checkpointTable,
  chainTable,
  logTable,
  journalTable,
  lossTable,
  tailTable,
  restartTable,
  reopenTable,
  reuseTable,
  deviceTable,
  formatTable,
  stagingTable,
  publishTable,
].map((table) => table as unknown as AnyTable);

export const architecturePath = join(import.meta.dirname, "../../docs/architecture.md");
const section = /(<!-- tables:[^\n]*-->\n)[\s\S]*?(<!-- \/tables -->)/;

function line(cells: readonly string[]): string {
  return `| ${cells.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`;
}

function document(table: AnyTable): string {
  const facts = Object.keys(table.facts);
  const rows = table.rows.map(({ name, when, action }) =>
    line([name, ...facts.map((fact) => [when[fact] ?? []].flat().join(", ")), action]),
  );
  const actions = Object.entries(table.actions).map(([action, meaning]) => `- ${action}: ${meaning}`);
  const head = [
    line(["state", ...facts, "action"]),
    line(["---", ...facts.map(() => "---"), "---"]).replaceAll(" ", ""),
  ];
  return [`### ${table.title}`, "", ...head, ...rows, "", ...actions, ""].join("\n");
}

/** `text` with the tables that the program has now; throws where it has no place for them. */
export function withStartTables(text: string): string {
  if (!section.test(text)) throw new Error("the document has no section of tables");
  const tables = startTables.map((table) => document(table)).join("\n");
  return text.replace(section, (_all, start: string, end: string) => `${start}\n${tables}\n${end}`);
}

if (import.meta.main) writeFileSync(architecturePath, withStartTables(readFileSync(architecturePath, "utf8")));
