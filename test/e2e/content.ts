/** Files to put on a volume, and what a directory holds as a list that can be compared. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { cp, lstat, mkdir, readdir, readFile, readlink, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { SeededRandom } from "../../src/base/seeded-random.ts";

export const run = promisify(execFile);

/** Source files, random bytes in sizes around block and extent borders, a sparse file, links. */
export async function fillTree(target: string): Promise<void> {
  await cp(join(import.meta.dirname, "../../src/volume"), join(target, "source"), { recursive: true });
  await mkdir(join(target, "random"));
  const random = new SeededRandom(41);
  for (const size of [0, 1, 4095, 4096, 4097, 65_537, 1_048_575, 8_388_608]) {
    await writeFile(join(target, "random", String(size)), random.bytes(size));
  }
  await run("truncate", ["-s", "9M", join(target, "random/sparse")]);
  await symlink("../source", join(target, "random/link"));
}

/** One line an entry, in order of names: mode, size, and the checksum of a file or the aim of a link. */
export async function listTree(directory: string): Promise<string[]> {
  const names = (await readdir(directory, { recursive: true })).filter((name) => !name.startsWith("lost+found"));
  return await Promise.all(
    names.toSorted().map(async (name) => `${name} ${await describeEntry(join(directory, name))}`),
  );
}

async function describeEntry(path: string): Promise<string> {
  const { mode, size, mtimeMs } = await lstat(path);
  const head = `${mode.toString(8)} ${mtimeMs}`;
  if ((mode & 0o170000) === 0o120000) return `${head} → ${await readlink(path)}`;
  if ((mode & 0o170000) === 0o040000) return head;
  return `${head} ${size} ${createHash("sha256")
    .update(await readFile(path))
    .digest("hex")}`;
}

/** Nothing of what comes next is answered from memory. */
export async function dropCaches(): Promise<void> {
  await run("sync");
  await writeFile("/proc/sys/vm/drop_caches", "3");
}
