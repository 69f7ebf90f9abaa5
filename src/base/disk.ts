/**
 * A directory on a local disk as a dependency of the engine: system-disk.ts is the machine's, memory-disk.ts serves
 * tests, the simulator brings one that tears and loses unsynced data. Names are plain file names (no "/").
 *
 * Durability: bytes written are durable after the file's sync() has resolved; names created, renamed or removed are
 * durable after the directory's sync() has resolved. Before that, a crash of the machine (not of the process) may
 * lose any subset of unsynced 512-byte sectors and of unsynced names.
 * Errors: OperationError "exhausted" when the disk is full, "not-found" for a missing file, else "unavailable".
 */
export interface DiskFile {
  readonly name: string;
  /** Size in bytes as opened, allocated or extended by writes. */
  sizeBytes(): number;
  /** Fills `target` from `position`; a short read is an error ("corrupt"). Runs on the calling thread. */
  readSync(target: Uint8Array, position: number): void;
  /**
   * Like readSync where the bytes are in memory. False where the disk would have to be waited for: read() does that.
   * Undefined where this file's disk cannot tell. `target` holds anything then.
   */
  readNow(target: Uint8Array, position: number): boolean | undefined;
  /** Like readSync off the thread: for data that is likely not in the page cache. */
  read(target: Uint8Array, position: number): Promise<void>;
  /** Writes all of `source` at `position` into the page cache, on the calling thread. */
  writeSync(source: Uint8Array, position: number): void;
  /** Like writeSync, off the thread. */
  write(source: Uint8Array, position: number): Promise<void>;
  /** Reserves blocks for [0, sizeBytes) and sets the size; existing bytes stay. "exhausted" where the disk is full. */
  allocate(sizeBytes: number): Promise<void>;
  /** fdatasync. After a failure the file's unsynced content is undefined and the caller must not trust it again. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

export interface Disk {
  /** Names of the files (not directories) in this directory, sorted. */
  list(): Promise<string[]>;
  /** Names of the subdirectories, sorted. */
  listDirectories(): Promise<string[]>;
  /** Opens a file; with `create`, makes it empty (mode 0600) where it is missing. */
  open(name: string, options?: { create?: boolean }): Promise<DiskFile>;
  rename(from: string, to: string): Promise<void>;
  /** Removes a file; a missing one is no error. */
  remove(name: string): Promise<void>;
  /** The subdirectory `name`, made (mode 0700) where it is missing: its own name is durable when this resolves. */
  directory(name: string): Promise<Disk>;
  /** Removes the subdirectory `name` with all it holds; a missing one is no error. */
  removeDirectory(name: string): Promise<void>;
  /** fsync of the directory itself. */
  sync(): Promise<void>;
  /** Free and total bytes of the file system. */
  space(): Promise<{ freeBytes: number; totalBytes: number }>;
}
