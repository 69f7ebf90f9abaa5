/**
 * The table of flags in README.md, made from the table in the program (src/cli/flags.ts). `npm run render` writes it;
 * documents.test.ts holds it against the program.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { flagName, flags, flagVariable } from "../../src/cli/flags.ts";
import type { Flag, FlagKey } from "../../src/cli/flags.ts";

export const readmePath = join(import.meta.dirname, "../../README.md");
const section = /(<!-- flags:[^\n]*-->\n)[\s\S]*?(<!-- \/flags -->)/;

function cell(text: string): string {
  return text.replaceAll("|", "\\|");
}

function flagTable(): string {
  const rows = (Object.keys(flags) as FlagKey[]).map((key) => {
    const flag: Flag = flags[key];
    const fallback = flag.default === undefined || flag.default === "" ? "" : `\`${String(flag.default)}\``;
    const name = `\`--${flagName(key)}\`<br>\`${flagVariable(key)}\``;
    return `| ${name} | ${flag.commands.join(", ")} | ${fallback} | ${cell(flag.description)} |`;
  });
  return ["", "| flag, variable | commands | default | meaning |", "|---|---|---|---|", ...rows, "", ""].join("\n");
}

/** `readme` with the table that the program has now; throws where it has no place for one. */
export function withFlagTable(readme: string): string {
  if (!section.test(readme)) throw new Error("README.md has no section of flags");
  return readme.replace(section, (_all, start: string, end: string) => start + flagTable() + end);
}

if (import.meta.main) writeFileSync(readmePath, withFlagTable(readFileSync(readmePath, "utf8")));
