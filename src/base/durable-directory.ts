/** Directories whose names outlive the machine. */
import { open, mkdir, stat } from "node:fs/promises";
import { dirname } from "node:path";

/**
 * The directory at the absolute `path`, made (mode 0700) with its parents where it is missing; its name is durable
 * when this resolves. Nothing is made in a directory before its own name is durable: so where the directory is
 * there, however its maker ended, its own name alone is in doubt, and one sync of the parent settles that.
 *
 * Who may not read the parent of a directory that was there did not make it: it was given, by an operator whose
 * tools answer for its name. The same holds for one on which a file system is mounted.
 *
 * @throws the file system's own error.
 */
export async function makeDurableDirectory(path: string): Promise<void> {
  const parent = dirname(path);
  if (parent === path) return;
  const made = !(await isDirectory(path)) && (await make(path, parent));
  if (!made && (await isMounted(path, parent))) return;
  try {
    await syncDirectory(parent);
  } catch (error) {
    if (made || codeOf(error) !== "EACCES") throw error;
  }
}

/** Syncs the names that stand in the directory. */
async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** False where someone else was first. */
async function make(path: string, parent: string): Promise<boolean> {
  await makeDurableDirectory(parent);
  try {
    await mkdir(path, { mode: 0o700 });
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST" && (await isDirectory(path))) return false;
    throw error;
  }
}

async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    if (codeOf(error) === "ENOENT") return false;
    throw error;
  }
}

async function isMounted(path: string, parent: string): Promise<boolean> {
  return (await stat(path)).dev !== (await stat(parent)).dev;
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}
