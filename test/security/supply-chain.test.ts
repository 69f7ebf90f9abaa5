/**
 * What comes from others, and what it may do: every package of the lock file has a checksum, a licence of a short list and
 * the registry as its only source; install scripts run for named packages alone; sources start programs at two places.
 */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const root = join(import.meta.dirname, "../..");
const read = (path: string): string => readFileSync(join(root, path), "utf8");

interface LockedPackage {
  version?: string;
  resolved?: string;
  integrity?: string;
  license?: string;
  dev?: boolean;
  optional?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
  link?: boolean;
  inBundle?: boolean;
  hasInstallScript?: boolean;
}

interface Manifest {
  scripts: Record<string, string>;
  dependencies: Record<string, string>;
  devDependencies: Record<string, string>;
  allowScripts: Record<string, boolean>;
}

const manifest = JSON.parse(read("package.json")) as Manifest;
const lock = JSON.parse(read("package-lock.json")) as {
  lockfileVersion: number;
  packages: Record<string, LockedPackage>;
};
const packages = Object.entries(lock.packages).filter(([path]) => path !== "");
const licences = ["0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"];

/** Builds of development tools for machines that are none of ours: nothing installs them here or in the image. */
function isForOtherMachines({ dev, optional, os, cpu, libc }: LockedPackage): boolean {
  const isOurs =
    os?.includes("linux") === true && cpu?.includes("x64") === true && (libc === undefined || libc.includes("glibc"));
  return dev === true && optional === true && os !== undefined && cpu !== undefined && !isOurs;
}

/** The packages of which npm could not tell the checksum when the lock file was made, all of them as above. */
const unchecked = packages.filter(([, { integrity }]) => integrity === undefined);

test("every package is pinned by a checksum, but for builds of development tools for other machines", () => {
  assert.equal(lock.lockfileVersion, 3);
  assert.ok(packages.length > 150);
  assert.deepEqual(
    unchecked.filter(([, locked]) => !isForOtherMachines(locked)),
    [],
  );
  for (const [path, { integrity, version }] of packages) {
    assert.match(version ?? "", /^\d+\.\d+\.\d+(-[\w.]+)?$/, path);
    if (integrity !== undefined) assert.match(integrity, /^sha512-[A-Za-z0-9+/]{86}==$/, path);
  }
});

test("everything comes from the registry: no link, bundle, folder, archive or repository", () => {
  for (const [path, { resolved, link, inBundle }] of packages) {
    assert.match(path, /^(node_modules\/(@[a-z0-9._-]+\/)?[a-z0-9._-]+(\/|$))+$/);
    assert.deepEqual([resolved, link, inBundle], [undefined, undefined, undefined], path);
  }
  for (const [name, version] of Object.entries({ ...manifest.dependencies, ...manifest.devDependencies })) {
    assert.match(version, /^\d+\.\d+\.\d+$/, `${name} is not pinned`);
  }
});

test("licences are of the list", () => {
  for (const [path, locked] of packages) {
    if (unchecked.some(([name]) => name === path)) continue;
    const isListed = licences.includes(locked.license ?? "");
    assert.ok(isListed, `${path}: ${locked.license}`);
  }
});

test("the packages with install scripts are those that package.json names, and the installer runs those it allows", () => {
  const withScripts = packages.filter(([, locked]) => locked.hasInstallScript === true);
  const names = withScripts.map(([path]) => path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length));
  assert.deepEqual(names.toSorted(), Object.keys(manifest.allowScripts).toSorted());
  const allowed = Object.keys(manifest.allowScripts).filter((name) => manifest.allowScripts[name]);
  assert.deepEqual(allowed, ["node"]);
  for (const own of ["preinstall", "install", "postinstall", "prepare", "prepublish"]) {
    assert.ok(!(own in manifest.scripts), own);
  }
  const bootstrap = read("test/install/bootstrap.sh");
  const installs = bootstrap.match(/^\s*npm (?:ci|install|rebuild)\b.*$/gm)?.map((line) => line.trim()) ?? [];
  assert.equal(installs.length, 2);
  assert.match(installs[0] ?? "", /^npm ci --ignore-scripts /);
  assert.match(installs[1] ?? "", new RegExp(`^npm rebuild ${allowed.join(" ")} --ignore-scripts=false `));
  assert.match(read("Dockerfile"), /npm ci --omit=dev --ignore-scripts/);
});

test("the production tree is small, and each of its packages can be accounted for", () => {
  const production = packages.filter(([, locked]) => locked.dev !== true);
  assert.ok(production.length < 120, `${production.length} packages`);
  assert.ok(production.every(([, locked]) => locked.integrity !== undefined && locked.license !== undefined));
});

const sources = globSync("src/**/*.ts", { cwd: root }).map((path) => ({ path, text: read(path) }));

test("programs are started at three places, never by a shell, and code is made from text nowhere", () => {
  const starting = sources
    .filter(({ text }) => /from "node:(child_process|cluster)"/.test(text))
    .map(({ path }) => path);
  const [supervise, ...others] = starting.toSorted();
  assert.deepEqual(others, ["src/host/process.ts", "src/nbd/kernel/device-probe.ts"]);
  // The supervisor starts this program again, and nothing else.
  assert.equal(supervise, "src/cli/supervise.ts");
  const started = [...read(supervise).matchAll(/\bspawn\(([^,]*),/g)].map((match) => match[1]);
  assert.deepEqual(started, ["process.execPath"]);
  for (const { path, text } of sources) {
    assert.doesNotMatch(text, /\bshell\s*:/, path);
    assert.doesNotMatch(text, /\b(execSync|execFileSync|spawnSync|fork)\s*\(/, path);
    assert.doesNotMatch(text, /(?<![.\w])(exec|eval|Function)\s*\(|from "node:(vm|repl|inspector)"/, path);
  }
  const direct = sources.find(({ path }) => path === "src/nbd/kernel/device-probe.ts");
  assert.match(direct?.text ?? "", /env: \{\}/);
});

test("the environment is read where the process starts, and certificates are verified everywhere", () => {
  for (const { path, text } of sources) {
    if (text.includes("process.env"))
      assert.match(path, /^src\/cli\/(main|process|process-protection|supervised-server)\.ts$/);
    assert.doesNotMatch(text, /rejectUnauthorized: false|NODE_TLS_REJECT_UNAUTHORIZED|insecureSkipVerify/, path);
  }
});
