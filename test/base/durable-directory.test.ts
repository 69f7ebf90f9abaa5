/** Directories that outlive the machine: which names are synced, and when, whoever made them and however they ended. */
import assert from "node:assert/strict";
import { existsSync, promises as fs, readlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mock, test } from "node:test";
import { makeDurableDirectory } from "../../src/base/durable-directory.ts";

interface Handle {
  fd: number;
  sync: () => Promise<void>;
}

/** Runs `run` with a fresh directory, which with all below it goes through `onSync` before it is synced. */
async function withSyncs(
  run: (root: string) => Promise<void>,
  onSync: (path: string) => void | Promise<void>,
): Promise<void> {
  const root = await fs.mkdtemp(join(tmpdir(), "s3block-durable-"));
  const probe = await fs.open(root, "r");
  const prototype = Object.getPrototypeOf(probe) as Handle;
  await probe.close();
  const real = prototype.sync;
  const mocked = mock.method(prototype, "sync", async function sync(this: Handle) {
    const path = readlinkSync(`/proc/self/fd/${this.fd}`);
    // What lies around it is other tests', and changes all the time.
    if (path.startsWith(root)) await onSync(path);
    await real.call(this);
  });
  try {
    await run(root);
  } finally {
    mocked.mock.restore();
    await fs.rm(root, { recursive: true, force: true });
  }
}

test("each name is durable before anything is made in its directory", async () => {
  const seen: string[] = [];
  await withSyncs(
    async (root) => {
      await makeDurableDirectory(join(root, "a", "b", "c"));
      const a = join(root, "a");
      assert.deepEqual(seen, [`${root}: a`, `${a}: b`, `${join(a, "b")}: c`]);
      assert.equal((await fs.stat(join(root, "a", "b", "c"))).mode & 0o777, 0o700);
    },
    async (path) => {
      const below = await fs.readdir(path, { recursive: true });
      seen.push(`${path}: ${below.join(" ")}`);
    },
  );
});

test("a directory that is there has its name synced: its maker may have died before that", async () => {
  const seen: string[] = [];
  await withSyncs(
    async (root) => {
      await fs.mkdir(join(root, "a"));
      await makeDurableDirectory(join(root, "a"));
      assert.deepEqual(seen, [root]);
    },
    (path) => void seen.push(path),
  );
});

test("a sync that fails is an error, makes nothing further, and is made up for by the next call", async () => {
  let failures = 1;
  const seen: string[] = [];
  await withSyncs(
    async (root) => {
      const inner = join(root, "a", "b");
      await assert.rejects(makeDurableDirectory(inner), /bad sector/);
      assert.ok(!existsSync(inner));
      await makeDurableDirectory(inner);
      assert.deepEqual(seen, [root, root, join(root, "a")]);
    },
    (path) => {
      seen.push(path);
      if (failures-- > 0) throw new Error("bad sector");
    },
  );
});

test("a directory given by an operator, below one that may not be read, is used", async () => {
  const seen: string[] = [];
  await withSyncs(
    async (root) => {
      const given = join(root, "shut", "given");
      await fs.mkdir(given, { recursive: true });
      await fs.chmod(root, 0o755);
      await fs.chmod(join(root, "shut"), 0o111);
      // Root may read everything.
      const isRoot = process.geteuid?.() === 0;
      if (isRoot) {
        await fs.chown(given, 65_534, 65_534);
        process.seteuid?.(65_534);
      }
      try {
        await makeDurableDirectory(given);
        await makeDurableDirectory(join(given, "more"));
        await assert.rejects(makeDurableDirectory(join(root, "shut", "refused")), { code: "EACCES" });
      } finally {
        if (isRoot) process.seteuid?.(0);
        await fs.chmod(join(root, "shut"), 0o755);
      }
      assert.deepEqual(seen, [given, root]);
    },
    (path) => void seen.push(path),
  );
});

test("a file, or a link to nothing, in the place of the directory is an error", async () => {
  await withSyncs(
    async (root) => {
      await fs.writeFile(join(root, "file"), "");
      await fs.symlink("nowhere", join(root, "link"));
      await assert.rejects(makeDurableDirectory(join(root, "file")), { code: "EEXIST" });
      await assert.rejects(makeDurableDirectory(join(root, "file", "inner")), { code: "ENOTDIR" });
      await assert.rejects(makeDurableDirectory(join(root, "link")), { code: "EEXIST" });
      await assert.rejects(makeDurableDirectory(join(root, "link", "inner")), { code: "EEXIST" });
    },
    () => {},
  );
});
