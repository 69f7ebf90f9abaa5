/** What the documents say of files, flags, commands and parameters is there. */
import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { flagName, flags } from "../../src/cli/flags.ts";
import type { FlagKey } from "../../src/cli/flags.ts";
import { parseParameters } from "../../src/csi/parameters.ts";
import { readmePath, withFlagTable } from "./flag-table.ts";

const root = join(import.meta.dirname, "../..");
const readme = readFileSync(readmePath, "utf8");
const documents = globSync(["*.md", "docs/**/*.md"], { cwd: root }).toSorted();

test("README.md lists the flags that the program has (else: npm run render)", () => {
  assert.equal(readme, withFlagTable(readme));
});

test("links between documents lead to files", () => {
  assert.ok(documents.length >= 4);
  for (const document of documents) {
    const text = readFileSync(join(root, document), "utf8").replaceAll(/`[^`\n]*`/g, "");
    for (const [, link] of text.matchAll(/\]\(([^)\s#]+)(?:#[^)]*)?\)/g)) {
      if (/^https?:/.test(link)) continue;
      assert.ok(existsSync(join(root, dirname(document), link)), `${document}: ${link}`);
    }
  }
});

test("files of the repository that the documents name exist", () => {
  for (const document of documents) {
    const named = readFileSync(join(root, document), "utf8").match(
      /(?<![\w./-])(?:src|test|proto|docs|charts)\/[\w./-]+\.\w+/g,
    );
    for (const path of named ?? []) assert.ok(existsSync(join(root, path)), `${document}: ${path}`);
  }
});

test("every flag that README.md and the operations guide name exists", () => {
  const known = new Set((Object.keys(flags) as FlagKey[]).map((key) => `--${flagName(key)}`));
  const foreign = new Set(["--namespace", "--set", "--help", "--field-selector"]);
  for (const document of ["README.md", "docs/operations.md"]) {
    const named = readFileSync(join(root, document), "utf8").match(/(?<![\w-])--[a-z][a-z0-9-]+/g) ?? [];
    const unknown = named.filter((flag) => !known.has(flag) && !foreign.has(flag));
    assert.deepEqual(unknown, [], document);
  }
});

test("every npm command that the documents name is in package.json", () => {
  const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    scripts: Record<string, string>;
  };
  for (const document of documents) {
    for (const [, name] of readFileSync(join(root, document), "utf8").matchAll(/`npm run ([a-z:-]+)/g)) {
      assert.ok(name in scripts, `${document}: npm run ${name}`);
    }
  }
});

test("the parameters of README.md are those that the driver takes", () => {
  const table = readme.slice(
    readme.indexOf("### Parameters of a StorageClass"),
    readme.indexOf("## Without Kubernetes"),
  );
  const named = [...table.matchAll(/^\| `([A-Za-z]+)` \|/gm)].map(([, name]) => name);
  const refusal = /use only (.*) parameter=/.exec(messageOf(() => parseParameters({ unknown: "x" })))?.[1] ?? "";
  assert.deepEqual(named.toSorted(), refusal.split(", ").toSorted());
});

function messageOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    return (error as Error).message;
  }
  return "";
}
