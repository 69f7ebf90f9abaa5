/**
 * Paths that a caller names, made safe: they lie below the kubelet's directory, with every symbolic link on the way
 * resolved before they are compared, so that mountinfo (which has real paths) can be asked about them.
 * Targets are made one level deep and removed by rmdir or unlink of an empty file alone: whatever turns out not to be
 * empty stays, because it could be a user's data. The last component of a path is never followed.
 */
import { lstat, mkdir, open, realpath, rmdir, unlink } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { OperationError } from "../base/errors.ts";
import { isMissing } from "../host/block-device.ts";

export class NodePaths {
  readonly #root: string;

  /** `root`: the kubelet's directory; need not exist yet. */
  constructor(root: string) {
    this.#root = root;
  }

  /** The real form of a path whose parent exists; undefined where the parent does not. "invalid" outside the root. */
  async resolve(path: string): Promise<string | undefined> {
    try {
      const root = await realpath(this.#root);
      const real = `${await realpath(dirname(path))}/${basename(path)}`;
      if (!real.startsWith(root === "/" ? root : `${root}/`)) {
        throw new OperationError("invalid", "a path lies outside the kubelet's directory: see --kubelet-dir", {
          context: { path, kubeletDir: this.#root },
        });
      }
      return real;
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw asPathError(error, path);
    }
  }

  /** Like resolve; "not-found" where the parent is missing: the caller makes it. */
  async mustResolve(path: string): Promise<string> {
    const real = await this.resolve(path);
    if (real !== undefined) return real;
    throw new OperationError("not-found", "the parent directory of a path does not exist", { context: { path } });
  }
}

/** Makes a directory to mount on, or finds it there. */
export async function makeMountDirectory(path: string): Promise<void> {
  await makeTarget(path, "directory", () => mkdir(path, { mode: 0o750 }));
}

/** Makes an empty file to bind a device on, or finds it there. */
export async function makeMountFile(path: string): Promise<void> {
  await makeTarget(path, "file", async () => (await open(path, "wx", 0o600)).close());
}

/** Removes an unmounted target; a missing one is no error, and what is not empty is one. */
export async function removeTarget(path: string): Promise<void> {
  try {
    const status = await lstat(path);
    if (status.isDirectory()) await rmdir(path);
    else if (status.isFile() && status.size === 0) await unlink(path);
    else throw notEmpty(path);
  } catch (error) {
    if (isMissing(error)) return;
    const code = (error as NodeJS.ErrnoException).code;
    throw code === "ENOTEMPTY" || code === "EEXIST" ? notEmpty(path) : asPathError(error, path);
  }
}

/** True where something is at the path; a broken mount counts. */
export async function pathExists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    return !isMissing(error);
  }
}

async function makeTarget(path: string, kind: "directory" | "file", make: () => Promise<unknown>): Promise<void> {
  try {
    await make();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw asPathError(error, path);
    const status = await lstat(path);
    if (kind === "directory" ? status.isDirectory() : status.isFile()) return;
    throw new OperationError("conflict", `the path exists and is no ${kind}`, { context: { path } });
  }
}

function notEmpty(path: string): OperationError {
  return new OperationError("in-use", "the target holds files of its own and was not removed: look into it", {
    context: { path },
  });
}

function asPathError(error: unknown, path: string): OperationError {
  if (error instanceof OperationError) return error;
  const code = (error as NodeJS.ErrnoException).code ?? "unknown";
  return new OperationError("unavailable", "a path cannot be used", { cause: error, context: { path, code } });
}
