/**
 * A tree of real files of this machine: chosen, copied into a volume, compared there by SHA-256, name by name.
 * What is compared against is computed from the bytes as they were read for the copy, so that a file that changes on
 * the machine meanwhile is no difference. Nothing may be missing in the volume, and nothing more may be there.
 */
import { createHash } from "node:crypto";
import {
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  symlinkSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";

export const WANTED_FILES = 10_000;
/** Files up to this size are taken as they come; bigger ones until they make up `bigBytesLimit`. */
const smallBytes = 256 * 1024;
const bigBytesLimit = 64 * 1024 ** 2;
const biggestBytes = 32 * 1024 ** 2;
/** Between turns of the event loop, so that Ctrl-C is heard. */
const filesPerTurn = 50;

export interface TreeEntry {
  /** Absolute path on the machine; below the copy's root in the volume. */
  path: string;
  kind: "file" | "link";
}

/** What a volume must show: a digest by path, "-> target" for symbolic links. */
export interface Manifest {
  digests: Map<string, string>;
  files: number;
  bytes: number;
}

/** Chooses files below `roots`, in order, until there are WANTED_FILES of them; what cannot be read is left out. */
export function chooseTree(roots: readonly string[]): TreeEntry[] {
  const chosen: TreeEntry[] = [];
  let files = 0;
  let bigBytes = 0;
  const visit = (directory: string): void => {
    for (const entry of sortedEntries(directory)) {
      if (files >= WANTED_FILES) return;
      const path = join(directory, entry.name);
      if (entry.isDirectory()) visit(path);
      else if (entry.isSymbolicLink()) chosen.push({ path, kind: "link" });
      else if (entry.isFile()) {
        const sizeBytes = lstatSync(path).size;
        if (sizeBytes > smallBytes) {
          if (sizeBytes > biggestBytes || bigBytes + sizeBytes > bigBytesLimit) continue;
          bigBytes += sizeBytes;
        }
        files += 1;
        chosen.push({ path, kind: "file" });
      }
    }
  };
  for (const root of roots) visit(root);
  return chosen;
}

function sortedEntries(directory: string) {
  try {
    const entries = readdirSync(directory, { withFileTypes: true });
    return entries.toSorted((a, b) => (a.name < b.name ? -1 : 1));
  } catch {
    return [];
  }
}

/** Copies the tree below `target`. `check` is called now and then and may throw to end it. */
export async function copyTree(tree: readonly TreeEntry[], target: string, check: () => void): Promise<Manifest> {
  const manifest: Manifest = { digests: new Map(), files: 0, bytes: 0 };
  const made = new Set<string>();
  for (const [index, { path, kind }] of tree.entries()) {
    if (index % filesPerTurn === 0) {
      await nextTurn();
      check();
    }
    const content = kind === "file" ? readIfAllowed(path) : readlinkSync(path);
    if (content === undefined) continue;
    const copy = join(target, path);
    const directory = dirname(copy);
    if (!made.has(directory)) {
      mkdirSync(directory, { recursive: true });
      made.add(directory);
    }
    if (typeof content === "string") {
      symlinkSync(content, copy);
      manifest.digests.set(path, `-> ${content}`);
    } else {
      writeNew(copy, content);
      manifest.digests.set(path, createHash("sha256").update(content).digest("hex"));
      manifest.files += 1;
      manifest.bytes += content.length;
    }
  }
  return manifest;
}

function readIfAllowed(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}

function writeNew(path: string, content: Buffer): void {
  const fd = openSync(path, "wx");
  try {
    for (let at = 0; at < content.length;) at += writeSync(fd, content, at);
  } finally {
    closeSync(fd);
  }
}

/** What differs between the manifest and what is found below `target`, as lines for people; empty: they are the same. */
export async function compareTree(manifest: Manifest, target: string, check: () => void): Promise<string[]> {
  const differences: string[] = [];
  const seen = new Set<string>();
  const buffer = Buffer.allocUnsafe(1024 ** 2);
  const pending = [""];
  let count = 0;
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    for (const entry of readdirSync(join(target, directory), { withFileTypes: true })) {
      const path = `${directory}/${entry.name}`;
      if (entry.isDirectory()) {
        pending.push(path);
        continue;
      }
      if (++count % filesPerTurn === 0) {
        await nextTurn();
        check();
      }
      seen.add(path);
      const found = entry.isSymbolicLink()
        ? `-> ${readlinkSync(join(target, path))}`
        : digestOf(join(target, path), buffer);
      const wanted = manifest.digests.get(path);
      if (wanted === undefined) differences.push(`${path} should not be there`);
      else if (wanted !== found) differences.push(`${path} differs: ${found} instead of ${wanted}`);
    }
  }
  for (const path of manifest.digests.keys()) if (!seen.has(path)) differences.push(`${path} is missing`);
  return differences;
}

function digestOf(path: string, buffer: Buffer): string {
  const hash = createHash("sha256");
  const fd = openSync(path, "r");
  try {
    for (;;) {
      const count = readSync(fd, buffer);
      if (count === 0) return hash.digest("hex");
      hash.update(buffer.subarray(0, count));
    }
  } finally {
    closeSync(fd);
  }
}
