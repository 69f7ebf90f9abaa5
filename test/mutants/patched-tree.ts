/**
 * A copy of the source and its tests in a directory of its own, to which one mutant at a time is applied. The original
 * is never touched. Copies share the dependencies of the original by a link.
 */
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Mutant } from "./mutant.ts";

export const repository = join(import.meta.dirname, "../..");

export class PatchedTree {
  readonly root: string;

  static async make(): Promise<PatchedTree> {
    const root = await mkdtemp(join(tmpdir(), "s3block-mutants-"));
    for (const name of ["src", "test", "proto", "package.json"]) {
      await cp(join(repository, name), join(root, name), { recursive: true });
    }
    await symlink(join(repository, "node_modules"), join(root, "node_modules"));
    return new PatchedTree(root);
  }

  private constructor(root: string) {
    this.root = root;
  }

  /** Runs `use` while the mutant is applied; throws where its text does not stand exactly once in its file. */
  async with<T>(mutant: Mutant, use: () => Promise<T>): Promise<T> {
    const path = join(this.root, mutant.file);
    const original = await readFile(path, "utf8");
    await writeFile(path, patch(mutant, original));
    try {
      return await use();
    } finally {
      await writeFile(path, original);
    }
  }

  async remove(): Promise<void> {
    await rm(this.root, { recursive: true });
  }
}

/** The text of the mutant's file with the mutant in it. */
export function patch(mutant: Mutant, original: string): string {
  const pieces = original.split(mutant.find);
  if (pieces.length === 2) return pieces.join(mutant.replace);
  throw new Error(
    `mutant ${mutant.name}: its text stands ${pieces.length - 1} times in ${mutant.file}, and must stand there once`,
  );
}
