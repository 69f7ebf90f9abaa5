/**
 * The Dockerfile, as far as it can be held against the repository without an engine: pinned bases, nothing left out of
 * the build context, and the packages of every program that the driver runs.
 */
import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const root = join(import.meta.dirname, "../..");
const dockerfile = readFileSync(join(root, "Dockerfile"), "utf8");

/** The Debian package of a program; dd and sh are in the base. */
const packages: Readonly<Record<string, string>> = {
  blkdiscard: "util-linux",
  blkid: "util-linux",
  blockdev: "util-linux",
  e2fsck: "e2fsprogs",
  mke2fs: "e2fsprogs",
  "mkfs.xfs": "xfsprogs",
  modprobe: "kmod",
  mount: "mount",
  umount: "mount",
  dd: "coreutils",
};

test("the image runs the Node that the tests run, and its bases are pinned", () => {
  const { devDependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    devDependencies: Record<string, string>;
  };
  const bases = [...dockerfile.matchAll(/^FROM (\S+)/gm)].map(([, base]) => base);
  assert.deepEqual(bases, [`node:${devDependencies["node"]}-trixie-slim`, "debian:trixie-slim"]);
});

test("what the image copies exists and is in the build context", () => {
  const allowed = readFileSync(join(root, ".dockerignore"), "utf8").match(/(?<=^!).+$/gm) ?? [];
  const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(([, sources]) => sources.split(" "));
  assert.deepEqual([...new Set(copied)].toSorted(), allowed.toSorted());
  for (const source of copied) assert.ok(existsSync(join(root, source)), source);
});

test("the image does not run as root by itself", () => {
  assert.match(dockerfile, /^USER 65532:65532$/m);
});

test("every program that the driver runs comes with a package of the image", () => {
  const installed = /apt-get install (?:-\S+ )*(.*) \\/.exec(dockerfile)?.[1].split(" ") ?? [];
  const sources = globSync("src/**/*.ts", { cwd: root }).map((file) => readFileSync(join(root, file), "utf8"));
  const run = new Set(
    sources
      .flatMap((text) => [...text.matchAll(/\brunProgram\(\s*"([^"]+)"|\bmustRunProgram\(\s*"([^"]+)"/g)])
      .map((match) => match[1] ?? match[2]),
  );
  assert.ok(run.size > 0);
  for (const program of [...run, "mount", "umount", "modprobe"]) {
    const name = packages[program];
    assert.ok(name !== undefined, `${program}: name its package here and in the Dockerfile`);
    assert.ok(name === "coreutils" || installed.includes(name), `${program} needs the package ${name}`);
  }
});
