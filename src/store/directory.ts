/**
 * An object store in a directory of a local or shared file system, for machines without S3. One object is one file.
 *
 * - Creation: the body is written to a file of its own below "@new", fsync'd, and linked to its name. link(2) fails
 *   where the name is taken, so of all racing creates, over all processes, exactly one wins, and an object is never
 *   seen in part. The directory is fsync'd before the answer: what was acknowledged survives a loss of power.
 * - What is seen is as durable: a file still has its second name below "@new" until its directory was fsync'd, and a
 *   reader that finds two names fsyncs the directory itself before it answers.
 * - Names: a key's parts are directories, its last part is a file with "@" behind it. No key holds an "@", so "a"
 *   and "a/b" can both be objects, and nothing collides with "@new".
 * - Files that a crash left below "@new" are removed after an hour, at the next opening.
 * It must never follow a key out of its root (object-key.ts sees to that) and never change a file that is linked.
 */
import { type FileHandle, link, mkdir, open, readdir, rmdir, stat, unlink } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { assert } from "../base/assert.ts";
import { asOperationError, describe, OperationError } from "../base/errors.ts";
import type { Clock } from "../base/clock.ts";
import { makeDurableDirectory } from "../base/durable-directory.ts";
import type { Random } from "../base/random.ts";
import { systemClock } from "../base/system-clock.ts";
import { systemRandom } from "../base/system-random.ts";
import { bodyLength } from "./body.ts";
import { DurableFiles } from "./durable-file.ts";
import { cutPage, listLimit } from "./list-page.ts";
import { assertKey, assertKeyPrefix, compareKeys } from "./object-key.ts";
import type {
  ByteRange,
  ListedObject,
  ListOptions,
  ListPage,
  ObjectStore,
  PutOutcome,
  RequestOptions,
} from "./object-store.ts";

const NEW_DIRECTORY = "@new";
const FILE_SUFFIX = "@";
const LEFTOVER_AGE_MS = 3_600_000;

export interface DirectoryStoreOptions {
  /** Made where it is missing (mode 0700). */
  root: string;
  clock?: Pick<Clock, "now">;
  random?: Random;
}

export class DirectoryStore implements ObjectStore {
  readonly location: string;
  readonly #root: string;
  readonly #newDirectory: string;
  readonly #clock: Pick<Clock, "now">;
  readonly #random: Random;
  readonly #files = new DurableFiles();
  #opened: Promise<void> | undefined;
  /** Directories whose names are durable up to the root, with the identity under which they were seen. */
  readonly #durable = new Map<string, string>();

  constructor(options: DirectoryStoreOptions) {
    this.#root = resolve(options.root);
    this.location = `file://${this.#root}`;
    this.#newDirectory = join(this.#root, NEW_DIRECTORY);
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? systemRandom;
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options: RequestOptions = {}): Promise<PutOutcome> {
    assertKey(key);
    bodyLength(body);
    return this.#run("put", options, async () => {
      const target = this.#pathOf(key);
      if (await exists(target)) return this.#seenBy(target);
      for (;;) {
        const outcome = await this.#create(target, body, options);
        if (outcome !== undefined) return outcome;
      }
    });
  }

  async get(key: string, options: RequestOptions = {}): Promise<Buffer | undefined> {
    assertKey(key);
    const answer = await this.#read(key, undefined, options);
    return answer?.bytes;
  }

  async getRange(
    key: string,
    range: ByteRange,
    options: RequestOptions = {},
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    assertKey(key);
    assert(Number.isSafeInteger(range.offset) && range.offset >= 0, `range offset: ${range.offset}`);
    assert(Number.isSafeInteger(range.length) && range.length > 0, `range length: ${range.length}`);
    return this.#read(key, range, options);
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    assertKeyPrefix(prefix);
    listLimit(options);
    return this.#run("list", options, async () => {
      const walk = new Walk(this.#root, prefix, options);
      const page = cutPage(prefix, await walk.keys(), options);
      const objects: ListedObject[] = [];
      for (const { key } of page.objects) {
        const file = await statOrNothing(this.#pathOf(key));
        // Deleted since the names were read: as if the listing had come later.
        if (file === undefined) continue;
        if (file.nlink > 1) await this.#makeDurable(dirname(this.#pathOf(key)));
        objects.push({ key, sizeBytes: file.size, modifiedMs: Math.floor(file.mtimeMs) });
      }
      return { ...page, objects };
    });
  }

  async delete(keys: readonly string[], options: RequestOptions = {}): Promise<void> {
    assert(keys.length <= 1000, `too many keys in one delete: ${keys.length}`);
    for (const key of keys) assertKey(key);
    await this.#run("delete", options, async () => {
      const touched = new Set<string>();
      for (const key of keys) {
        const path = this.#pathOf(key);
        if (await removed(path)) touched.add(dirname(path));
      }
      for (const directory of touched) await this.#prune(directory);
    });
  }

  async close(): Promise<void> {}

  #pathOf(key: string): string {
    return join(this.#root, key + FILE_SUFFIX);
  }

  async #run<T>(what: string, options: RequestOptions, work: () => Promise<T>): Promise<T> {
    try {
      failIfAborted(options);
      this.#opened ??= this.#open();
      await this.#opened;
      return await work();
    } catch (error) {
      throw translate(error, what, this.location);
    }
  }

  async #open(): Promise<void> {
    try {
      await makeDurableDirectory(this.#root);
      await makeDurableDirectory(this.#newDirectory);
      const tooOldMs = this.#clock.now() - LEFTOVER_AGE_MS;
      for (const name of await readdir(this.#newDirectory)) {
        const path = join(this.#newDirectory, name);
        const file = await statOrNothing(path);
        if (file !== undefined && file.mtimeMs < tooOldMs) await removed(path);
      }
    } catch (error) {
      this.#opened = undefined;
      throw error;
    }
  }

  /** One attempt; undefined where a directory was pruned under it, and another attempt is due. */
  async #create(target: string, body: readonly Uint8Array[], options: RequestOptions): Promise<PutOutcome | undefined> {
    const directory = dirname(target);
    const fresh = join(this.#newDirectory, this.#random.bytes(16).toString("hex"));
    try {
      await this.#files.write(fresh, body);
    } catch (error) {
      await removed(fresh);
      throw error;
    }
    try {
      failIfAborted(options);
      await mkdir(directory, { recursive: true, mode: 0o700 });
      await link(fresh, target);
      await this.#makeDurable(directory);
      return "created";
    } catch (error) {
      if (codeOf(error) === "EEXIST") return await this.#seenBy(target);
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    } finally {
      await removed(fresh);
    }
  }

  /** "exists", once what exists is durable. */
  async #seenBy(target: string): Promise<PutOutcome> {
    const file = await statOrNothing(target);
    if (file !== undefined && file.nlink > 1) await this.#makeDurable(dirname(target));
    return "exists";
  }

  async #read(
    key: string,
    range: ByteRange | undefined,
    options: RequestOptions,
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    return this.#run("get", options, async () => {
      const path = this.#pathOf(key);
      const file = await openOrNothing(path);
      if (file === undefined) return undefined;
      try {
        const { size, nlink } = await file.stat();
        if (nlink > 1) await this.#makeDurable(dirname(path));
        const start = Math.min(range?.offset ?? 0, size);
        const end = range === undefined ? size : Math.min(range.offset + range.length, size);
        const bytes = Buffer.allocUnsafeSlow(end - start);
        await fill(file, bytes, start);
        return { bytes, totalBytes: size };
      } finally {
        await file.close();
      }
    });
  }

  /** Makes the names in `directory`, and its own name and those above it, survive a loss of power. */
  async #makeDurable(directory: string): Promise<void> {
    const identity = await syncPath(directory);
    if (directory === this.#root || this.#durable.get(directory) === identity) return;
    await this.#makeDurable(dirname(directory));
    this.#durable.set(directory, identity);
  }

  /** Makes removed names stay removed, and removes directories that became empty, upwards. */
  async #prune(directory: string): Promise<void> {
    if (directory === this.#root) {
      await syncPath(directory);
      return;
    }
    try {
      await rmdir(directory);
    } catch (error) {
      if (codeOf(error) === "ENOTEMPTY" || codeOf(error) === "EEXIST") {
        await syncPath(directory).catch(ignoreMissing);
        return;
      }
      if (codeOf(error) !== "ENOENT") throw error;
    }
    this.#durable.delete(directory);
    await this.#prune(dirname(directory));
  }
}

/** Reads names below a prefix, in the order of keys, no further than a page needs. */
class Walk {
  readonly #root: string;
  readonly #prefix: string;
  readonly #after: string;
  readonly #delimiter: string | undefined;
  readonly #enough: number;
  readonly #found: ListedObject[] = [];

  constructor(root: string, prefix: string, options: ListOptions) {
    this.#root = root;
    this.#prefix = prefix;
    this.#after = options.after ?? "";
    this.#delimiter = options.delimiter;
    // One more than the page, which tells that there is a next one; one more for a group that is left out.
    this.#enough = listLimit(options) + 2;
  }

  /** Keys, ascending; of a directory that is one group of the page, a single one. Sizes and times are not filled in. */
  async keys(): Promise<ListedObject[]> {
    const parent = this.#prefix.slice(0, this.#prefix.lastIndexOf("/") + 1);
    await this.#visit(parent);
    return this.#found;
  }

  async #visit(parent: string): Promise<void> {
    for (const name of await sortedNames(join(this.#root, parent))) {
      if (this.#found.length >= this.#enough) return;
      const path = parent + name;
      if (!name.endsWith("/")) {
        if (path.startsWith(this.#prefix) && path > this.#after) this.#add(path);
      } else if (path.startsWith(this.#prefix) || this.#prefix.startsWith(path)) {
        if (path <= this.#after && !this.#after.startsWith(path)) continue;
        await this.#visitDirectory(path);
      }
    }
  }

  async #visitDirectory(path: string): Promise<void> {
    const isGroup = this.#delimiter !== undefined && path.startsWith(this.#prefix) && path.length > this.#prefix.length;
    if (!isGroup) {
      await this.#visit(path);
    } else if (!this.#after.startsWith(path)) {
      const first = await firstKey(this.#root, path);
      if (first !== undefined) this.#add(first);
    }
  }

  #add(key: string): void {
    this.#found.push({ key, sizeBytes: 0, modifiedMs: 0 });
  }
}

/** Names in a directory as they stand in keys: objects without their suffix, directories with a "/" behind. */
async function sortedNames(directory: string): Promise<string[]> {
  try {
    const names: string[] = [];
    for (const entry of await readdir(directory, { withFileTypes: true })) {
      if (entry.isDirectory() && !entry.name.includes(FILE_SUFFIX)) names.push(`${entry.name}/`);
      else if (entry.isFile() && entry.name.endsWith(FILE_SUFFIX)) names.push(entry.name.slice(0, -FILE_SUFFIX.length));
    }
    return names.sort(compareKeys);
  } catch (error) {
    ignoreMissing(error);
    return [];
  }
}

async function firstKey(root: string, parent: string): Promise<string | undefined> {
  for (const name of await sortedNames(join(root, parent))) {
    const key = name.endsWith("/") ? await firstKey(root, parent + name) : parent + name;
    if (key !== undefined) return key;
  }
  return undefined;
}

async function fill(file: FileHandle, target: Buffer, position: number): Promise<void> {
  for (let filled = 0; filled < target.length;) {
    const { bytesRead } = await file.read(target, filled, target.length - filled, position + filled);
    if (bytesRead === 0) throw new OperationError("corrupt", "object file is shorter than its size");
    filled += bytesRead;
  }
}

/** fsync of a directory; its identity, which differs where it was removed and made again. */
async function syncPath(path: string): Promise<string> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
    const { ino, birthtimeMs } = await directory.stat();
    return `${ino}:${birthtimeMs}`;
  } finally {
    await directory.close();
  }
}

async function removed(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    ignoreMissing(error);
    return false;
  }
}

async function exists(path: string): Promise<boolean> {
  return (await statOrNothing(path)) !== undefined;
}

async function statOrNothing(path: string): Promise<{ size: number; mtimeMs: number; nlink: number } | undefined> {
  return stat(path).catch(ignoreMissing);
}

async function openOrNothing(path: string): Promise<FileHandle | undefined> {
  return open(path, "r").catch(ignoreMissing);
}

function ignoreMissing(error: unknown): undefined {
  if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined;
  throw error;
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
}

function failIfAborted(options: RequestOptions): void {
  if (options.signal?.aborted === true) throw new OperationError("unavailable", "store request was given up");
}

const FULL = new Set(["ENOSPC", "EDQUOT"]);
const REFUSED = new Set(["EACCES", "EPERM", "EROFS", "ENOTDIR", "ELOOP", "ENAMETOOLONG"]);

/** Errors of the file system become ours; everything else passes. */
function translate(error: unknown, what: string, location: string): unknown {
  if (codeOf(error) === undefined) return error;
  if (FULL.has(codeOf(error) ?? "")) {
    return new OperationError("exhausted", "the disk of the directory store is full: free space there", {
      context: { location },
    });
  }
  if (REFUSED.has(codeOf(error) ?? "")) {
    return new OperationError(
      "invalid",
      `the directory store cannot ${what}: let this process read and write it: ${describe(error)}`,
      { context: { location } },
    );
  }
  return asOperationError(error, "unavailable", `directory store failed to ${what}`);
}
