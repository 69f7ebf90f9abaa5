/**
 * A disk in memory, for tests and the simulator, that is exactly as forgetful as disk.ts allows: it keeps what is
 * written apart from what is durable. crash() is a loss of power (any subset of the unsynced 512-byte sectors and of
 * the unsynced changes of names is lost), reopen() the death of the process (nothing is lost).
 *
 * Both end this object and all its files: they answer "unavailable" from then on, so that code of the former process
 * that still runs cannot reach the disk of its successor. Deterministic for one Random.
 * A sync that fails makes nothing durable, and neither does the next one unless the bytes are written again: as Linux
 * does it. A rename is one change; it is kept or lost as a whole.
 */
import { assert } from "./assert.ts";
import type { Disk, DiskFile } from "./disk.ts";
import { OperationError } from "./errors.ts";
import { MemoryFileContent } from "./memory-file.ts";
import type { Random } from "./random.ts";

/** One call, as a fault hook sees it. `path` has the subdirectories in front: "volume-1/journal-3". */
export interface MemoryDiskCall {
  operation:
    | "open"
    | "read"
    | "write"
    | "allocate"
    | "sync"
    | "rename"
    | "remove"
    | "list"
    | "directory"
    | "sync-directory";
  path: string;
  position: number;
  length: number;
}

export interface MemoryDiskOptions {
  /** Bytes of allocated 64 KiB chunks over all files before writes fail with "exhausted"; default: no limit. */
  capacityBytes?: number;
  /** Called before each operation takes effect; what it throws is what the operation fails with. */
  fault?: (call: MemoryDiskCall) => void;
  /**
   * Called when an asynchronous operation begins; it takes effect when the promise resolves, never where that never
   * does. A sync covers what had been written when it began.
   */
  delay?: (call: MemoryDiskCall) => Promise<void> | undefined;
  /** What readNow() takes to be in memory; without it no file can tell. */
  inMemory?: (call: MemoryDiskCall) => boolean;
}

/** Shared by a disk and its subdirectories, and ended by crash() and reopen(). */
interface Session {
  ended: boolean;
  root: DirectoryNode;
  capacityBytes: number;
  fault: ((call: MemoryDiskCall) => void) | undefined;
  delay: ((call: MemoryDiskCall) => Promise<void> | undefined) | undefined;
  inMemory: ((call: MemoryDiskCall) => boolean) | undefined;
}

export class MemoryDisk implements Disk {
  #session: Session;
  #node: DirectoryNode;
  #path: string;

  constructor(options: MemoryDiskOptions = {}) {
    const capacityBytes = options.capacityBytes ?? Number.POSITIVE_INFINITY;
    this.#node = new DirectoryNode();
    const { fault, delay, inMemory } = options;
    this.#session = { ended: false, root: this.#node, capacityBytes, fault, delay, inMemory };
    this.#path = "";
  }

  /** Replaces the fault hook, for this disk and all its files and subdirectories. */
  setFault(fault: ((call: MemoryDiskCall) => void) | undefined): void {
    this.#session.fault = fault;
  }

  /** Replaces the delay hook, for this disk and all its files and subdirectories. */
  setDelay(delay: ((call: MemoryDiskCall) => Promise<void> | undefined) | undefined): void {
    this.#session.delay = delay;
  }

  /** Replaces the hook that says what is in memory, for this disk and all its files and subdirectories. */
  setInMemory(inMemory: ((call: MemoryDiskCall) => boolean) | undefined): void {
    this.#session.inMemory = inMemory;
  }

  /** Changes the room there is; what is allocated stays. */
  setCapacity(capacityBytes: number): void {
    this.#session.capacityBytes = capacityBytes;
  }

  /** Loses power: answers the disk as the next boot finds it. Only on the root. */
  crash(random: Random): MemoryDisk {
    const next = this.reopen();
    next.#node.crash(random, random.fraction());
    return next;
  }

  /** Ends the process: answers the disk as the next process finds it, with nothing lost. Only on the root. */
  reopen(): MemoryDisk {
    assert(this.#path === "", "only the root of a memory disk can crash or be opened again");
    const next = new MemoryDisk();
    next.#session = { ...this.#session, ended: false };
    next.#node = this.#node;
    next.#node.reopen();
    this.#session.ended = true;
    return next;
  }

  /** Paths of all files, as they are now, subdirectories included; sorted. */
  paths(): string[] {
    return [...this.#node.files("")].map(([path]) => path).toSorted();
  }

  /** Size of a file now, in bytes; 0 where there is none. */
  sizeOf(path: string): number {
    return this.#node.fileAt(path)?.sizeBytes ?? 0;
  }

  /** What a file holds now in [position, position + length), up to its end; empty where there is none. */
  contentOf(path: string, position = 0, length = Infinity): Buffer {
    const node = this.#node.fileAt(path);
    const content = Buffer.allocUnsafe(Math.max(0, Math.min(length, (node?.sizeBytes ?? 0) - position)));
    node?.read(content, position);
    return content;
  }

  /** Changes bytes of a file behind everybody's back, durably: what a rotten disk does. Beyond its end nothing happens. */
  damage(path: string, position: number, bytes: Uint8Array): void {
    const node = this.#node.fileAt(path);
    if (node !== undefined && position < node.sizeBytes) {
      node.damage(bytes.subarray(0, node.sizeBytes - position), position);
    }
  }

  async list(): Promise<string[]> {
    await this.#enter("list");
    return [...this.#node.entries]
      .flatMap(([name, node]) => (node instanceof MemoryFileContent ? [name] : []))
      .toSorted();
  }

  async listDirectories(): Promise<string[]> {
    await this.#enter("list");
    return [...this.#node.entries]
      .flatMap(([name, node]) => (node instanceof MemoryFileContent ? [] : [name]))
      .toSorted();
  }

  async open(name: string, options: { create?: boolean } = {}): Promise<DiskFile> {
    const path = await this.#enter("open", name);
    let node = this.#node.entries.get(name);
    if (node === undefined) {
      if (options.create !== true) throw missing(path);
      node = new MemoryFileContent();
      this.#node.change({ added: name, removed: undefined, node });
    }
    if (!(node instanceof MemoryFileContent)) {
      throw new OperationError("unavailable", "cannot open the file: it is a directory", { context: { path } });
    }
    return new MemoryFile(name, path, node, this.#session);
  }

  async rename(from: string, to: string): Promise<void> {
    plainName(to);
    const path = await this.#enter("rename", from);
    const node = this.#node.entries.get(from);
    if (node === undefined) throw missing(path);
    if (from !== to) this.#node.change({ added: to, removed: from, node });
  }

  async remove(name: string): Promise<void> {
    await this.#enter("remove", name);
    this.#drop(name);
  }

  async directory(name: string): Promise<Disk> {
    const path = await this.#enter("directory", name);
    let node = this.#node.entries.get(name);
    if (node === undefined) {
      node = new DirectoryNode();
      this.#node.change({ added: name, removed: undefined, node });
    }
    if (!this.#node.isDurable(name)) await this.sync();
    assert(node instanceof DirectoryNode, `${path} is a file`);
    const disk = new MemoryDisk();
    disk.#session = this.#session;
    disk.#node = node;
    disk.#path = `${path}/`;
    return disk;
  }

  async removeDirectory(name: string): Promise<void> {
    await this.#enter("remove", name);
    this.#drop(name);
  }

  async sync(): Promise<void> {
    const { changes } = this.#node;
    await this.#enter("sync-directory");
    this.#node.settle(changes);
  }

  async space(): Promise<{ freeBytes: number; totalBytes: number }> {
    const total = Math.min(this.#session.capacityBytes, 2 ** 50);
    return { freeBytes: Math.max(0, total - this.#session.root.allocatedBytes()), totalBytes: total };
  }

  #drop(name: string): void {
    const node = this.#node.entries.get(name);
    if (node !== undefined) this.#node.change({ added: undefined, removed: name, node });
  }

  async #enter(operation: MemoryDiskCall["operation"], name?: string): Promise<string> {
    if (name !== undefined) plainName(name);
    const path = this.#path + (name ?? "");
    const call: MemoryDiskCall = { operation, path, position: 0, length: 0 };
    await this.#session.delay?.(call);
    check(this.#session, call);
    return path;
  }
}

/** A change of names: `removed` goes and `added` points to `node`, together. */
interface NameChange {
  added: string | undefined;
  removed: string | undefined;
  node: MemoryFileContent | DirectoryNode;
}

class DirectoryNode {
  readonly entries = new Map<string, MemoryFileContent | DirectoryNode>();
  readonly #durable = new Map<string, MemoryFileContent | DirectoryNode>();
  /** Changes of names made so far, and those of them that are not durable. */
  changes = 0;
  #pending: NameChange[] = [];

  change(change: NameChange): void {
    apply(this.entries, change);
    this.#pending.push(change);
    this.changes += 1;
  }

  isDurable(name: string): boolean {
    return this.#durable.get(name) === this.entries.get(name);
  }

  /** Makes the first `count` of all changes durable. */
  settle(count: number): void {
    const durable = this.changes - this.#pending.length;
    for (const change of this.#pending.splice(0, Math.max(0, count - durable))) apply(this.#durable, change);
  }

  *files(prefix: string): Generator<[path: string, node: MemoryFileContent]> {
    for (const [name, node] of this.entries) {
      if (node instanceof MemoryFileContent) yield [prefix + name, node];
      else yield* node.files(`${prefix}${name}/`);
    }
  }

  /** The file of that path; undefined where there is none. */
  fileAt(path: string): MemoryFileContent | undefined {
    const slash = path.indexOf("/");
    const node = this.entries.get(slash < 0 ? path : path.slice(0, slash));
    if (node instanceof DirectoryNode) return slash < 0 ? undefined : node.fileAt(path.slice(slash + 1));
    return slash < 0 ? node : undefined;
  }

  crash(random: Random, keep: number): void {
    for (const change of this.#pending) {
      if (random.fraction() < keep) apply(this.#durable, change);
    }
    this.#pending = [];
    this.entries.clear();
    for (const [name, node] of this.#durable) {
      this.entries.set(name, node);
      node.crash(random, keep);
    }
  }

  /** Syncs of the former process still end: what they had begun to write is as unsynced as before. */
  reopen(): void {
    for (const node of this.entries.values()) node.reopen();
  }

  allocatedBytes(): number {
    let bytes = 0;
    for (const node of this.entries.values()) bytes += node.allocatedBytes();
    return bytes;
  }
}

function apply(entries: Map<string, MemoryFileContent | DirectoryNode>, change: NameChange): void {
  if (change.removed !== undefined && entries.get(change.removed) === change.node) entries.delete(change.removed);
  if (change.added !== undefined) entries.set(change.added, change.node);
}

class MemoryFile implements DiskFile {
  readonly name: string;
  readonly #path: string;
  readonly #node: MemoryFileContent;
  readonly #session: Session;
  #closed = false;

  constructor(name: string, path: string, node: MemoryFileContent, session: Session) {
    this.name = name;
    this.#path = path;
    this.#node = node;
    this.#session = session;
  }

  sizeBytes(): number {
    return this.#node.sizeBytes;
  }

  readSync(target: Uint8Array, position: number): void {
    this.#enter("read", position, target.length);
    const read = Math.max(0, this.#node.sizeBytes - position);
    if (read < target.length) {
      const context = { path: this.#path, position, length: target.length, read };
      throw new OperationError("corrupt", "the file ends before the bytes that should be there", { context });
    }
    this.#node.read(target, position);
  }

  readNow(target: Uint8Array, position: number): boolean | undefined {
    const { inMemory } = this.#session;
    assert(!this.#closed, `the file ${this.#path} is closed`);
    if (inMemory === undefined) return undefined;
    const call = { operation: "read", path: this.#path, position, length: target.length } as const;
    if (!inMemory(call) || position + target.length > this.#node.sizeBytes) return false;
    this.readSync(target, position);
    return true;
  }

  async read(target: Uint8Array, position: number): Promise<void> {
    await this.#begin("read", position, target.length);
    this.readSync(target, position);
  }

  writeSync(source: Uint8Array, position: number): void {
    this.#enter("write", position, source.length);
    if (source.length === 0) return;
    this.#reserve(this.#node.missingBytes(position, source.length));
    this.#node.write(source, position);
  }

  async write(source: Uint8Array, position: number): Promise<void> {
    await this.#begin("write", position, source.length);
    this.writeSync(source, position);
  }

  async allocate(sizeBytes: number): Promise<void> {
    await this.#begin("allocate", 0, sizeBytes);
    this.#enter("allocate", 0, sizeBytes);
    if (sizeBytes === 0) return;
    this.#reserve(this.#node.missingBytes(0, sizeBytes));
    this.#node.allocate(sizeBytes);
    await this.sync();
  }

  async sync(): Promise<void> {
    this.#assertOpen();
    const end = this.#node.beginSync();
    try {
      await this.#begin("sync", 0, 0);
      this.#enter("sync", 0, 0);
    } catch (error) {
      end(false);
      throw error;
    }
    end(true);
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #reserve(bytes: number): void {
    const session = this.#session;
    if (bytes > 0 && session.root.allocatedBytes() + bytes > session.capacityBytes) {
      const context = { path: this.#path };
      throw new OperationError("exhausted", "cannot write the file: the local disk is full, free space on it", {
        context,
      });
    }
  }

  async #begin(operation: MemoryDiskCall["operation"], position: number, length: number): Promise<void> {
    this.#assertOpen();
    await this.#session.delay?.({ operation, path: this.#path, position, length });
  }

  #assertOpen(): void {
    assert(!this.#closed, `the file ${this.#path} is closed`);
  }

  #enter(operation: MemoryDiskCall["operation"], position: number, length: number): void {
    this.#assertOpen();
    check(this.#session, { operation, path: this.#path, position, length });
  }
}

function check(session: Session, call: MemoryDiskCall): void {
  if (session.ended) {
    throw new OperationError("unavailable", "the disk of a process that has ended", { context: { path: call.path } });
  }
  session.fault?.(call);
}

function missing(path: string): OperationError {
  return new OperationError("not-found", "no such file", { context: { path } });
}

function plainName(name: string): void {
  assert(name !== "" && name !== "." && name !== ".." && !/[/\0]/.test(name), `"${name}" is no plain file name`);
}
