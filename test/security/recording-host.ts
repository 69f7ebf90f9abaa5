/**
 * A machine that only writes down what is done to it: programs that would be started, files that would be made or removed.
 * It stands in for node:child_process, for the parts of node:fs/promises that change something, and for what the kernel
 * would show of one device (/dev/nbd7) and its mounts. Everything else is the real machine's.
 *
 * It replaces functions of Node's modules in this process until restore() is called: for test files of their own.
 */
import childProcess from "node:child_process";
import { EventEmitter } from "node:events";
import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { PassThrough } from "node:stream";

export const DEVICE = "/dev/nbd7";
const DEVICE_MAJOR = 43;
const DEVICE_MINOR = 7;
const BLOCK_BYTES = 4096;

export interface StartedProgram {
  path: string;
  args: readonly string[];
  options: { env?: NodeJS.ProcessEnv; shell?: unknown; cwd?: string };
}

export interface FileChange {
  call: string;
  path: string;
  options: unknown;
}

interface SpawnLike {
  (path: string, args: readonly string[], options: StartedProgram["options"]): unknown;
}

const changing = [
  "mkdir",
  "rmdir",
  "unlink",
  "rm",
  "rename",
  "symlink",
  "link",
  "chmod",
  "chown",
  "writeFile",
  "truncate",
];

export class RecordingHost {
  readonly programs: StartedProgram[] = [];
  readonly changes: FileChange[] = [];
  /** Calls that would start a program in a way that the driver must not use. */
  readonly forbidden: string[] = [];
  readonly #sizeBytes: number;
  readonly #undo: (() => void)[] = [];
  #mounts: { target: string; fileSystem: string; options: string; root: string }[] = [];
  #formatted = "";

  constructor(sizeBytes: number) {
    this.#sizeBytes = sizeBytes;
    const processes = childProcess as unknown as Record<string, unknown>;
    this.#replace(processes, "spawn", ((path, args, options) => this.#spawn(path, args, options)) satisfies SpawnLike);
    for (const name of ["exec", "execSync", "execFile", "execFileSync", "spawnSync", "fork"]) {
      this.#replace(processes, name, () => {
        this.forbidden.push(name);
        throw new Error(`${name} is not for the driver`);
      });
    }
    this.#replaceFiles();
    syncBuiltinESMExports();
  }

  /** Nothing was done yet, nothing is mounted, the device is empty. */
  reset(): void {
    this.programs.length = 0;
    this.changes.length = 0;
    this.forbidden.length = 0;
    this.#mounts = [];
    this.#formatted = "";
  }

  restore(): void {
    for (const undo of this.#undo) undo();
    syncBuiltinESMExports();
  }

  #replace(module: Record<string, unknown>, name: string, replacement: unknown): void {
    const original = module[name];
    module[name] = replacement;
    this.#undo.push(() => (module[name] = original));
  }

  #replaceFiles(): void {
    const module = fs as unknown as Record<string, unknown>;
    for (const name of changing) {
      const original = module[name] as (...args: unknown[]) => unknown;
      this.#replace(module, name, (...args: unknown[]) => {
        this.changes.push({ call: name, path: String(args[0]), options: args[1] });
        return original(...args);
      });
    }
    const { open, stat, readFile } = fs;
    this.#replace(module, "open", async (path: string, flags?: string | number, mode?: number) => {
      if (path === DEVICE) return { close: async () => {} };
      if (flags !== undefined && flags !== "r") this.changes.push({ call: "open", path: String(path), options: flags });
      return open(path, flags, mode);
    });
    this.#replace(module, "stat", async (path: string, options: { bigint?: false }) => {
      const rdev = BigInt(DEVICE_MAJOR * 256 + DEVICE_MINOR);
      return path === DEVICE ? { isBlockDevice: () => true, rdev } : stat(path, options);
    });
    this.#replace(module, "readFile", async (path: string, options: "utf8") => {
      if (path === "/proc/self/mountinfo") return this.#mountInfo();
      if (path === `/sys/dev/block/${DEVICE_MAJOR}:${DEVICE_MINOR}/size`) return `${this.#sizeBytes / 512}\n`;
      return readFile(path, options);
    });
  }

  #spawn(path: string, args: readonly string[], options: StartedProgram["options"]): unknown {
    this.programs.push({ path, args, options });
    const child = Object.assign(new EventEmitter(), {
      pid: undefined,
      stdin: new PassThrough().resume(),
      stdout: new PassThrough(),
      stderr: new PassThrough(),
      unref: () => {},
    });
    const { status, output } = this.#outcome(args[0] === "--exclusive" ? args.slice(7) : [path, ...args]);
    child.stdout.end(output);
    child.stderr.end();
    setImmediate(() => {
      child.emit("exit", status, null);
      child.emit("close", status, null);
    });
    return child;
  }

  /** What the machine would have done. */
  #outcome(commandLine: readonly string[]): { status: number; output: Buffer } {
    const program = commandLine[0]?.split("/").at(-1) ?? "";
    const target = commandLine.at(-1) ?? "";
    const done = { status: 0, output: Buffer.alloc(0) };
    switch (program) {
      case "mount":
        this.#mount(commandLine.slice(1));
        return done;
      case "umount":
        this.#mounts = this.#mounts.filter((mount) => mount.target !== target);
        return done;
      case "blkid":
        return this.#formatted === ""
          ? { ...done, status: 2 }
          : { status: 0, output: Buffer.from(`TYPE=${this.#formatted}\n`) };
      case "mke2fs":
        this.#formatted = "ext4";
        return done;
      case "mkfs.xfs":
        if (!commandLine.includes("-V")) this.#formatted = "xfs";
        return { status: 0, output: Buffer.from("mkfs.xfs version 6.1.0\n") };
      case "dd":
        return { status: 0, output: Buffer.alloc(BLOCK_BYTES) };
      default:
        return done;
    }
  }

  #mount(args: readonly string[]): void {
    const value = (option: string): string | undefined =>
      args.includes(option) ? args[args.indexOf(option) + 1] : undefined;
    const options = (value("-o") ?? "").split(",");
    const target = args.at(-1) ?? "";
    const access = options.includes("ro") ? "ro" : "rw";
    if (!options.includes("bind"))
      this.#mounts.push({ target, fileSystem: value("-t") ?? "", options: access, root: "/" });
    else if (args.at(-2) === DEVICE) {
      this.#mounts.push({ target, fileSystem: "devtmpfs", options: access, root: DEVICE.slice("/dev".length) });
    } else this.#mounts.push({ target, fileSystem: "ext4", options: access, root: "/" });
  }

  #mountInfo(): string {
    const escape = (text: string): string =>
      text.replaceAll(/[ \t\n\\]/g, (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, "0")}`);
    return this.#mounts
      .map(({ target, fileSystem, options, root }, index) => {
        const number = fileSystem === "devtmpfs" ? "0:5" : `${DEVICE_MAJOR}:${DEVICE_MINOR}`;
        return `${100 + index} 1 ${number} ${root} ${escape(target)} ${options} - ${fileSystem} ${DEVICE} ${options}\n`;
      })
      .join("");
  }
}
