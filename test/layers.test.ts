/**
 * The house rules that no linter knows, held against every source file: which folder may import which, who may touch
 * the S3 SDK, gRPC and system calls, which files do no I/O, and how a file opens. There is no list of exceptions:
 * a file that breaks a rule moves, or the rule is changed here for all.
 */
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { builtinModules } from "node:module";
import { dirname, join, posix, relative } from "node:path";
import { test } from "node:test";

const root = join(import.meta.dirname, "..");

/** Lower rows may be imported by higher ones; folders of one row never import each other. */
const rows: readonly (readonly string[])[] = [
  ["base"],
  ["block", "store", "observability"],
  ["volume", "nbd", "host"],
  ["attachment", "k8s"],
  ["csi"],
  ["cli"],
];

/** A package, and the only source files that may import it (paths relative to src). */
const owners: readonly { name: RegExp; mayImport: RegExp }[] = [
  { name: /^@(aws-sdk|smithy)\//, mayImport: /^store\/s3/ },
  { name: /^@grpc\//, mayImport: /^(csi\/|attachment\/control-)/ },
  { name: /^@node-rs\/crc32$/, mayImport: /^base\/checksum\.ts$/ },
  { name: /^koffi$/, mayImport: /^(nbd\/kernel|host)\// },
  { name: /^prom-client$/, mayImport: /^observability\// },
  { name: /^@kubernetes\//, mayImport: /^k8s\// },
];

/** Files that compute and do nothing else; the modules of Node that they may use. */
const pureFiles = /^(volume\/format\/|volume\/keys\.ts$|nbd\/protocol\.ts$|nbd\/errno\.ts$|csi\/status\.ts$)/;
const pureModules = new Set(["node:buffer", "node:crypto", "node:zlib"]);

interface Source {
  /** Relative to src, with slashes. */
  path: string;
  text: string;
  /** Comments replaced by spaces, so that offsets stay. */
  code: string;
  imports: string[];
}

function blank(text: string): string {
  return text.replaceAll(/[^\n]/g, " ");
}

/** Blanks comments and leaves strings, so that a rule written in a comment is no violation. */
function withoutComments(text: string): string {
  const tokens = /"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|\/\/[^\n]*|\/\*[\s\S]*?\*\//g;
  return text.replaceAll(tokens, (token) => (/^\/[/*]/.test(token) ? blank(token) : token));
}

function importsOf(code: string): string[] {
  const specifier = /\b(?:import|export)\b[^"';]*?\bfrom\s*["']([^"']+)["']|\bimport\s*\(?\s*["']([^"']+)["']/g;
  return [...code.matchAll(specifier)].map((match) => match[1] ?? match[2] ?? "");
}

function sources(): Source[] {
  const folder = join(root, "src");
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".ts"))
    .map((entry) => {
      const file = join(entry.parentPath, entry.name);
      const text = readFileSync(file, "utf8");
      const code = withoutComments(text);
      return { path: relative(folder, file).replaceAll("\\", "/"), text, code, imports: importsOf(code) };
    })
    .sort((a, b) => (a.path < b.path ? -1 : 1));
}

const all = sources();

/** The file under src that a relative import names, or undefined for a package. */
function target(source: Source, specifier: string): string | undefined {
  if (!specifier.startsWith(".")) return undefined;
  return posix.normalize(posix.join(dirname(source.path), specifier));
}

function room(path: string): string {
  return path.split("/")[0] ?? "";
}

function row(path: string): number {
  return rows.findIndex((folders) => folders.includes(room(path)));
}

/** `check` names what is wrong with a source; one assertion shows all of them. */
function expectNone(check: (source: Source) => string[]): void {
  const wrong = all.flatMap((source) => check(source).map((what) => `src/${source.path}: ${what}`));
  assert.deepEqual(wrong, []);
}

test("the reader of imports sees every form of import and nothing in comments", () => {
  const text = [
    'import a from "./a.ts";',
    'import type { B } from "./b.ts"; // import x from "./comment.ts"',
    'import {\n  c,\n  d,\n} from "./c.ts";',
    'export { e } from "./e.ts";',
    'import "./f.ts";',
    'const g = await import("./g.ts");',
    '/* import h from "./h.ts"; */',
    'const i = "// not a comment"; import j from "./j.ts";',
  ].join("\n");
  assert.deepEqual(importsOf(withoutComments(text)), [
    "./a.ts",
    "./b.ts",
    "./c.ts",
    "./e.ts",
    "./f.ts",
    "./g.ts",
    "./j.ts",
  ]);
});

test("there are sources, and each one stands in a room of the house", () => {
  assert.ok(all.length >= 10, `only ${all.length} source files were found`);
  expectNone((source) => (row(source.path) < 0 ? [`no room is called "${room(source.path)}"`] : []));
});

test("imports point down, and rooms of one row never import each other", () => {
  expectNone((source) =>
    source.imports.flatMap((specifier) => {
      const path = target(source, specifier);
      if (path === undefined || room(path) === room(source.path)) return [];
      if (row(path) >= 0 && row(path) < row(source.path)) return [];
      return [`imports ${specifier}, which is not below it`];
    }),
  );
});

test("relative imports stay in src and name a .ts file", () => {
  expectNone((source) =>
    source.imports.flatMap((specifier) => {
      const path = target(source, specifier);
      if (path === undefined) return [];
      if (path.startsWith("..")) return [`imports ${specifier}, which is outside of src`];
      return path.endsWith(".ts") && all.some((other) => other.path === path) ? [] : [`imports ${specifier}: no file`];
    }),
  );
});

test("every other import is a built-in module by its node: name or a declared dependency with one owner", () => {
  const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { dependencies: object };
  const dependencies = Object.keys(manifest.dependencies);
  const ownerless = dependencies.filter((name) => !owners.some((owner) => owner.name.test(name)));
  assert.deepEqual(ownerless, [], "dependencies that no room owns");
  expectNone((source) =>
    source.imports.flatMap((specifier) => {
      if (specifier.startsWith(".")) return [];
      if (specifier.startsWith("node:")) return [];
      if (builtinModules.includes(specifier)) return [`imports ${specifier} without node:`];
      const declared = dependencies.some((name) => specifier === name || specifier.startsWith(`${name}/`));
      if (!declared) return [`imports ${specifier}, which package.json does not list as a dependency`];
      const owner = owners.find(({ name }) => name.test(specifier));
      return owner?.mayImport.test(source.path) === true ? [] : [`imports ${specifier}, which other rooms own`];
    }),
  );
});

test("formats and protocol codecs do no I/O", () => {
  expectNone((source) => {
    if (!pureFiles.test(source.path)) return [];
    return source.imports
      .filter((specifier) => specifier.startsWith("node:") && !pureModules.has(specifier))
      .map((specifier) => `imports ${specifier}`);
  });
});

test("engine rooms do not read the clock by new Date()", () => {
  expectNone((source) => {
    if (!/^(volume|block|nbd\/(protocol|handshake|transmission)\.ts)/.test(source.path)) return [];
    return /\bnew Date\(\s*\)/.test(source.code) ? ["calls new Date()"] : [];
  });
});

test("every file opens with a comment that says what it is", () => {
  expectNone((source) => {
    const text = source.text.replace(/^#![^\n]*\n/, "");
    const comment = /^\/\*\*[\s\S]*?\*\/|^(?:\/\/[^\n]*\n)+/.exec(text)?.[0] ?? "";
    return comment.replaceAll(/[\s/*]/g, "").length >= 15 ? [] : ["has no comment at its top"];
  });
});

test("files have kebab-case names, and none is a barrel or a drawer", () => {
  expectNone((source) => {
    const name = posix.basename(source.path, ".ts");
    if (!/^[a-z0-9]+(-[a-z0-9]+)*$/.test(name)) return ["is not in kebab-case"];
    if (/^(index|utils?|helpers?|common|manager|misc)$/.test(name)) return ["says nothing about what is in it"];
    return /^\s*export\s+\*/m.test(source.code) ? ["re-exports a whole module"] : [];
  });
});

test("files are at most 600 lines", () => {
  expectNone((source) => {
    const lines = source.text.split("\n").length - 1;
    return lines > 600 ? [`has ${lines} lines`] : [];
  });
});

test("a lint rule is switched off for one line, by name and with a reason", () => {
  expectNone((source) =>
    [...source.text.matchAll(/(?:oxlint|eslint)-disable(?!-next-line [a-z/-]+ -- \S)[^\n]*/g)].map(
      ([directive]) => directive,
    ),
  );
});

test("no mark of unfinished work is left", () => {
  expectNone((source) => [...source.text.matchAll(/\b(?:TODO|FIXME|XXX|HACK)\b[^\n]*/g)].map(([mark]) => mark));
});
