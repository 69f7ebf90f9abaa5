/** What the directory store promises beyond the contract: several processes, crashes, a disk that is full or closed. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { link, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { AssertionError } from "../../src/base/assert.ts";
import { isKind } from "../../src/base/errors.ts";
import { DirectoryStore } from "../../src/store/directory.ts";

const run = promisify(execFile);

async function temporaryRoot(t: TestContext): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), "s3block-directory-"));
  t.after(() => rm(root, { recursive: true, force: true }));
  return root;
}

test("of creates in four processes at the same time exactly one wins each key", async (t) => {
  const root = await temporaryRoot(t);
  const keys = Array.from({ length: 60 }, (_, index) => `race/${index % 7}/${index}`);
  const racer = join(import.meta.dirname, "directory-racer.ts");
  const names = ["one", "two", "three", "four"];
  const winnings = await Promise.all(
    names.map(async (name) => {
      const { stdout } = await run(process.execPath, [racer, root, name, ...keys]);
      return JSON.parse(stdout) as string[];
    }),
  );
  assert.deepEqual(winnings.flat().toSorted(), keys.toSorted());
  const store = new DirectoryStore({ root });
  for (const [index, won] of winnings.entries()) {
    for (const key of won) assert.equal((await store.get(key))?.toString(), `written by ${names[index]}`);
  }
});

test("an object and a directory may have the same name", async (t) => {
  const store = new DirectoryStore({ root: await temporaryRoot(t) });
  const keys = ["a", "a/b", "a/b/c", "a.b", "new"];
  for (const key of keys) assert.equal(await store.putIfAbsent(key, [Buffer.from(key)]), "created");
  for (const key of keys) assert.equal((await store.get(key))?.toString(), key);
  const page = await store.list("");
  assert.deepEqual(
    page.objects.map((object) => object.key),
    keys.toSorted(),
  );
});

test("deleting the last object of a directory leaves no directory behind", async (t) => {
  const root = await temporaryRoot(t);
  const store = new DirectoryStore({ root });
  await store.putIfAbsent("v1/deep/down/object", [Buffer.from("x")]);
  await store.putIfAbsent("v1/other", [Buffer.from("y")]);
  await store.delete(["v1/deep/down/object"]);
  assert.deepEqual(await readdir(join(root, "v1")), ["other@"]);
  await store.delete(["v1/other"]);
  assert.deepEqual(await readdir(root), ["@new"]);
  assert.deepEqual(await readdir(join(root, "@new")), []);
});

test("what a crash left of an unfinished create is no object, and goes at an opening an hour later", async (t) => {
  const root = await temporaryRoot(t);
  await new DirectoryStore({ root }).putIfAbsent("here", [Buffer.from("x")]);
  const torn = join(root, "@new", "0123");
  await writeFile(torn, "half a bo");
  const opened = new DirectoryStore({ root });
  assert.equal((await opened.list("")).objects.length, 1);
  assert.deepEqual(await readdir(join(root, "@new")), ["0123"]);
  const { mtimeMs } = await stat(torn);
  const later = new DirectoryStore({ root, clock: { now: () => mtimeMs + 3_600_001 } });
  assert.equal((await later.list("")).objects.length, 1);
  assert.deepEqual(await readdir(join(root, "@new")), []);
});

test("an object that a crash left linked but not yet acknowledged is whole and stays", async (t) => {
  const root = await temporaryRoot(t);
  const store = new DirectoryStore({ root });
  await store.putIfAbsent("v1/a", [Buffer.from("body")]);
  await link(join(root, "v1/a@"), join(root, "@new", "4567"));
  await utimes(join(root, "@new", "4567"), 1, 1);
  assert.equal((await store.get("v1/a"))?.toString(), "body");
  assert.equal(await store.putIfAbsent("v1/a", [Buffer.from("later")]), "exists");
  const again = new DirectoryStore({ root });
  assert.equal((await again.list("v1/")).objects.length, 1);
  assert.deepEqual(await readdir(join(root, "@new")), []);
  assert.equal(await readFile(join(root, "v1/a@"), "utf8"), "body");
});

test("keys that could leave the root, or mean another object, are bugs of the caller", async (t) => {
  const store = new DirectoryStore({ root: await temporaryRoot(t) });
  for (const key of [
    "",
    "/",
    "../x",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    "/a",
    "a\0b",
    "a@",
    "ä",
    "a b",
    "x".repeat(300),
  ]) {
    await assert.rejects(() => store.putIfAbsent(key, [Buffer.from("x")]), AssertionError, JSON.stringify(key));
    await assert.rejects(() => store.get(key), AssertionError);
    await assert.rejects(() => store.delete([key]), AssertionError);
  }
});

test("a store whose root is a file, or is gone, says what to do and makes nothing", async (t) => {
  const root = await temporaryRoot(t);
  await writeFile(join(root, "file"), "");
  const onFile = new DirectoryStore({ root: join(root, "file") });
  await assert.rejects(
    () => onFile.list(""),
    (error) => isKind(error, "invalid", "unavailable"),
  );
  const store = new DirectoryStore({ root: join(root, "store") });
  await store.putIfAbsent("a", [Buffer.from("x")]);
  await rm(join(root, "store"), { recursive: true });
  await assert.rejects(
    () => store.putIfAbsent("b", [Buffer.from("x")]),
    (error) => isKind(error, "unavailable"),
  );
  assert.deepEqual(await readdir(root), ["file"]);
});

test("a directory that may not be written is invalid, with the way out named", async () => {
  // Nobody may make directories in sysfs, not even root.
  const store = new DirectoryStore({ root: "/sys/s3block-test" });
  await assert.rejects(
    () => store.putIfAbsent("b", [Buffer.from("x")]),
    (error) => isKind(error, "invalid") && error.message.includes("let this process read and write it"),
  );
});
