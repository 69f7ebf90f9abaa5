/**
 * Mounts of this node: what is mounted (from /proc/self/mountinfo, never from memory) and how to change it.
 * Changes go through mount(8) and umount(8) in a process of their own, not through mount(2) in ours: a mount call can
 * hang in the kernel for as long as a device is silent, and a thread that hangs cannot be taken back, a process can.
 * Callers validate every path and option; still no value can become an option here: paths are absolute and stand
 * after "--", and the programs are told not to call helper programs (-i) and not to write mtab (-n).
 */
import { readFile } from "node:fs/promises";
import { assert } from "../base/assert.ts";
import { OperationError } from "../base/errors.ts";
import { failedProgram, runProgram } from "./process.ts";

/** Mounting may replay a journal; unmounting writes back what is dirty. */
const mountTimeoutMs = 5 * 60_000;
const bindTimeoutMs = 30_000;
const unmountTimeoutMs = 60_000;
const maxStackedMounts = 16;

/** One line of mountinfo (proc_pid_mountinfo(5)). */
export interface MountEntry {
  id: number;
  parentId: number;
  major: number;
  minor: number;
  /** Path inside the filesystem that is mounted here; "/" but for bind mounts of a part. */
  root: string;
  mountPoint: string;
  /** Options of this mount point: "rw", "relatime" … */
  options: string[];
  fileSystem: string;
  source: string;
  /** Options of the filesystem, shared by all its mount points. */
  superOptions: string[];
}

/** Throws "corrupt" where a line is not as the kernel writes it. */
export function parseMountInfo(text: string): MountEntry[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map(parseLine);
}

function parseLine(line: string): MountEntry {
  const fields = line.split(" ");
  const separator = fields.indexOf("-", 6);
  const device = /^(\d+):(\d+)$/.exec(fields[2] ?? "");
  if (separator === -1 || device === null || fields.length < separator + 3) {
    throw new OperationError("corrupt", "a line of mountinfo has another form than the kernel documents", {
      context: { line: JSON.stringify(line.slice(0, 200)) },
    });
  }
  return {
    id: Number(fields[0]),
    parentId: Number(fields[1]),
    major: Number(device[1]),
    minor: Number(device[2]),
    root: unescape(fields[3]),
    mountPoint: unescape(fields[4]),
    options: fields[5].split(","),
    fileSystem: unescape(fields[separator + 1]),
    source: unescape(fields[separator + 2]),
    superOptions: (fields[separator + 3] ?? "").split(","),
  };
}

/** The kernel writes space, tab, newline and backslash as three octal digits behind a backslash. */
function unescape(field: string): string {
  if (!field.includes("\\")) return field;
  const bytes = Buffer.from(field, "utf8").toString("latin1");
  const plain = bytes.replace(/\\([0-3][0-7]{2})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
  return Buffer.from(plain, "latin1").toString("utf8");
}

/** All mounts that this process sees, in the kernel's order. */
export async function listMounts(): Promise<MountEntry[]> {
  return parseMountInfo(await readFile("/proc/self/mountinfo", "utf8"));
}

/** The topmost mount at exactly `path`, or undefined. */
export function mountAt(mounts: readonly MountEntry[], path: string): MountEntry | undefined {
  return mounts.findLast((mount) => mount.mountPoint === path);
}

export interface FileSystemMount {
  device: string;
  target: string;
  fileSystem: string;
  options: readonly string[];
}

/**
 * Mounts a filesystem of a device; returns when it is mounted.
 * Errors: "unavailable" with what the kernel said, "busy" while a call hangs in the kernel.
 */
export async function mountFileSystem(mount: FileSystemMount): Promise<void> {
  const options = mount.options.length === 0 ? [] : ["-o", mount.options.join(",")];
  const args = ["-i", "-n", "-t", mount.fileSystem, ...options, "--", mount.device, mount.target];
  assertPaths(mount.device, mount.target);
  await change("mount", args, mountTimeoutMs);
}

/** Binds `source` (a directory, or a device onto a file) to `target`. Read-only is a matter of this mount point alone. */
export async function bindMount(source: string, target: string, options: { readOnly: boolean }): Promise<void> {
  assertPaths(source, target);
  const flags = options.readOnly ? "bind,ro" : "bind";
  await change("mount", ["-i", "-n", "-o", flags, "--", source, target], bindTimeoutMs);
}

/**
 * Unmounts everything stacked at `target`; nothing mounted there is no error. It never follows a symbolic link and
 * never looks into the filesystem, so that it works on a dead device.
 * Errors: "busy" while the mount is in use or the call hangs in the kernel.
 */
export async function unmount(target: string): Promise<void> {
  assertPaths(target);
  for (let attempt = 0; attempt < maxStackedMounts; attempt += 1) {
    if (mountAt(await listMounts(), target) === undefined) return;
    const result = await runProgram("umount", ["-c", "-i", "-n", "--", target], { timeoutMs: unmountTimeoutMs });
    if (result.status === 0) continue;
    if (mountAt(await listMounts(), target) === undefined) return;
    if (/busy/i.test(result.stderr)) {
      throw new OperationError("busy", "the mount is still in use: end the processes that use it, then retry", {
        context: { path: target },
      });
    }
    throw failedProgram("umount", result);
  }
  throw new OperationError("busy", "too many mounts are stacked on one path: unmount them by hand", {
    context: { path: target },
  });
}

async function change(program: string, args: readonly string[], timeoutMs: number): Promise<void> {
  const result = await runProgram(program, args, { timeoutMs });
  if (result.status !== 0) throw failedProgram(program, result);
}

function assertPaths(...paths: string[]): void {
  for (const path of paths) assert(path.startsWith("/") && !path.includes("\0"), "paths of mounts are absolute");
}
