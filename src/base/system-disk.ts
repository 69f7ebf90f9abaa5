/**
 * The machine's disk: a directory by node:fs. Files are raw descriptors, because synchronous reads and writes of
 * page-cached data on the calling thread are several times faster than the thread pool's, and are what hot paths use.
 *
 * Node knows no fallocate, and an unwritten extent would turn every first fdatasync into a metadata write anyway: so
 * allocate() writes zeroes, once, from the old end to the new one, and syncs. Files that were allocated are meant to
 * be recycled, never made anew in a hot path.
 *
 * It must never touch anything outside its directory, nor use a descriptor after close() has given it back.
 */
import { constants, promises as fs } from "node:fs";
import * as nodeFs from "node:fs";
import { join, resolve as absolutePath } from "node:path";
import { promisify } from "node:util";
import { assert } from "./assert.ts";
import type { Disk, DiskFile } from "./disk.ts";
import { makeDurableDirectory } from "./durable-directory.ts";
import { describe, type ErrorKind, OperationError } from "./errors.ts";

const ZERO_STEP_BYTES = 1024 * 1024;

const closeDescriptor = promisify(nodeFs.close);
const openDescriptor = promisify(nodeFs.open);
const syncData = promisify(nodeFs.fdatasync);
const syncAll = promisify(nodeFs.fsync);
const statDescriptor = promisify(nodeFs.fstat);

/**
 * Reads from memory alone: how many bytes came, -1 where the first one would have to be waited for. Throws where the file
 * system cannot do that. Node has no such call: who has a binding to system calls brings it.
 */
export type ReadInMemory = (descriptor: number, target: Uint8Array, position: number) => number;

/**
 * The directory at `path` as a Disk; it is made (mode 0700, parents too) where it is missing, its name is durable.
 * Without `readInMemory` no file can tell what is in memory.
 */
export async function openSystemDisk(path: string, readInMemory?: ReadInMemory): Promise<Disk> {
  const absolute = absolutePath(path);
  await guarded("make the directory", absolute, makeDurableDirectory(absolute));
  return new SystemDisk(absolute, readInMemory);
}

class SystemDisk implements Disk {
  readonly #path: string;
  readonly #readInMemory: ReadInMemory | undefined;

  constructor(path: string, readInMemory: ReadInMemory | undefined) {
    this.#path = path;
    this.#readInMemory = readInMemory;
  }

  async list(): Promise<string[]> {
    return await this.#names((entry) => entry.isFile());
  }

  async listDirectories(): Promise<string[]> {
    return await this.#names((entry) => entry.isDirectory());
  }

  async open(name: string, options: { create?: boolean } = {}): Promise<DiskFile> {
    const path = this.#join(name);
    const flags = constants.O_RDWR | (options.create === true ? constants.O_CREAT : 0);
    const descriptor = await guarded("open the file", path, openDescriptor(path, flags, 0o600));
    try {
      const { size } = await guarded("stat the file", path, statDescriptor(descriptor));
      return new SystemFile(name, path, { descriptor, sizeBytes: size, readInMemory: this.#readInMemory });
    } catch (error) {
      await closeDescriptor(descriptor);
      throw error;
    }
  }

  async rename(from: string, to: string): Promise<void> {
    const path = this.#join(from);
    await guarded("rename the file", path, fs.rename(path, this.#join(to)));
  }

  async remove(name: string): Promise<void> {
    const path = this.#join(name);
    await guarded("remove the file", path, fs.rm(path, { force: true }));
  }

  async directory(name: string): Promise<Disk> {
    return await openSystemDisk(this.#join(name), this.#readInMemory);
  }

  async removeDirectory(name: string): Promise<void> {
    const path = this.#join(name);
    await guarded("remove the directory", path, fs.rm(path, { force: true, recursive: true }));
  }

  async sync(): Promise<void> {
    const descriptor = await guarded("open the directory", this.#path, openDescriptor(this.#path, constants.O_RDONLY));
    try {
      await guarded("sync the directory", this.#path, syncAll(descriptor));
    } finally {
      await closeDescriptor(descriptor);
    }
  }

  async space(): Promise<{ freeBytes: number; totalBytes: number }> {
    const facts = await guarded("ask for the free space", this.#path, fs.statfs(this.#path));
    return { freeBytes: facts.bavail * facts.bsize, totalBytes: facts.blocks * facts.bsize };
  }

  async #names(wanted: (entry: nodeFs.Dirent) => boolean): Promise<string[]> {
    const entries = await guarded("list the directory", this.#path, fs.readdir(this.#path, { withFileTypes: true }));
    return entries
      .filter(wanted)
      .map((entry) => entry.name)
      .toSorted();
  }

  #join(name: string): string {
    assert(name !== "" && name !== "." && name !== ".." && !/[/\0]/.test(name), `"${name}" is no plain file name`);
    return join(this.#path, name);
  }
}

class SystemFile implements DiskFile {
  readonly name: string;
  readonly #path: string;
  #descriptor: number;
  #sizeBytes: number;
  #readInMemory: ReadInMemory | undefined;
  #pending = 0;
  #closed: Promise<void> | undefined;
  #idle: (() => void) | undefined;

  constructor(
    name: string,
    path: string,
    facts: { descriptor: number; sizeBytes: number; readInMemory: ReadInMemory | undefined },
  ) {
    this.name = name;
    this.#path = path;
    this.#descriptor = facts.descriptor;
    this.#sizeBytes = facts.sizeBytes;
    this.#readInMemory = facts.readInMemory;
  }

  sizeBytes(): number {
    return this.#sizeBytes;
  }

  readSync(target: Uint8Array, position: number): void {
    const descriptor = this.#open();
    let done = 0;
    try {
      while (done < target.length) {
        const count = nodeFs.readSync(descriptor, target, done, target.length - done, position + done);
        if (count === 0) break;
        done += count;
      }
    } catch (error) {
      throw translated(error, "read the file", this.#path);
    }
    if (done < target.length) throw this.#short(target.length, position, done);
  }

  readNow(target: Uint8Array, position: number): boolean | undefined {
    const descriptor = this.#open();
    if (this.#readInMemory === undefined) return undefined;
    try {
      // Where fewer bytes came, read() finds out whether the file ends there.
      return this.#readInMemory(descriptor, target, position) === target.length;
    } catch {
      // Not with this file system; where the disk has failed, the next read meets that as well.
      this.#readInMemory = undefined;
      return undefined;
    }
  }

  async read(target: Uint8Array, position: number): Promise<void> {
    const done = await this.#during("read the file", async (descriptor) => {
      let count = 0;
      while (count < target.length) {
        const step = await readStep(descriptor, target, count, position + count);
        if (step === 0) break;
        count += step;
      }
      return count;
    });
    if (done < target.length) throw this.#short(target.length, position, done);
  }

  writeSync(source: Uint8Array, position: number): void {
    const descriptor = this.#open();
    let done = 0;
    try {
      while (done < source.length) {
        done += nodeFs.writeSync(descriptor, source, done, source.length - done, position + done);
      }
    } catch (error) {
      throw translated(error, "write the file", this.#path);
    } finally {
      this.#extend(position + done);
    }
  }

  async write(source: Uint8Array, position: number): Promise<void> {
    await this.#during("write the file", async (descriptor) => {
      let done = 0;
      while (done < source.length) {
        done += await writeStep(descriptor, source, done, position + done);
        this.#extend(position + done);
      }
    });
  }

  async allocate(sizeBytes: number): Promise<void> {
    if (sizeBytes <= this.#sizeBytes) return;
    const zeroes = Buffer.alloc(Math.min(ZERO_STEP_BYTES, sizeBytes - this.#sizeBytes));
    while (this.#sizeBytes < sizeBytes) {
      const step = Math.min(zeroes.length, sizeBytes - this.#sizeBytes);
      await this.write(zeroes.subarray(0, step), this.#sizeBytes);
    }
    await this.sync();
  }

  async sync(): Promise<void> {
    await this.#during("sync the file", syncData);
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Waits for the calls that still run, because the number of a closed descriptor may belong to another file. */
  async #close(): Promise<void> {
    const descriptor = this.#descriptor;
    this.#descriptor = -1;
    if (this.#pending > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
    await guarded("close the file", this.#path, closeDescriptor(descriptor));
  }

  async #during<T>(what: string, run: (descriptor: number) => Promise<T>): Promise<T> {
    const descriptor = this.#open();
    this.#pending += 1;
    try {
      return await run(descriptor);
    } catch (error) {
      throw translated(error, what, this.#path);
    } finally {
      this.#pending -= 1;
      if (this.#pending === 0) this.#idle?.();
    }
  }

  #open(): number {
    assert(this.#descriptor >= 0, `the file ${this.name} is closed`);
    return this.#descriptor;
  }

  #extend(end: number): void {
    if (end > this.#sizeBytes) this.#sizeBytes = end;
  }

  #short(length: number, position: number, done: number): OperationError {
    const context = { path: this.#path, position, length, read: done };
    return new OperationError("corrupt", "the file ends before the bytes that should be there", { context });
  }
}

function readStep(descriptor: number, target: Uint8Array, done: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    nodeFs.read(descriptor, target, done, target.length - done, position, (error, count) => {
      if (error === null) resolve(count);
      else reject(error);
    });
  });
}

function writeStep(descriptor: number, source: Uint8Array, done: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    nodeFs.write(descriptor, source, done, source.length - done, position, (error, count) => {
      if (error === null) resolve(count);
      else reject(error);
    });
  });
}

async function guarded<T>(what: string, path: string, promise: Promise<T>): Promise<T> {
  try {
    return await promise;
  } catch (error) {
    throw translated(error, what, path);
  }
}

function translated(error: unknown, what: string, path: string): OperationError {
  if (error instanceof OperationError) return error;
  const code = (error as NodeJS.ErrnoException).code ?? "";
  const kind: ErrorKind =
    code === "ENOSPC" || code === "EDQUOT" ? "exhausted" : code === "ENOENT" ? "not-found" : "unavailable";
  const reason = kind === "exhausted" ? "the local disk is full, free space on it" : describe(error);
  return new OperationError(kind, `cannot ${what}: ${reason}`, { cause: error, context: { path } });
}
