/**
 * What this machine's kernel shows of the demonstration: configured nbd devices, mounts, and its log. Devices and
 * mounts are looked at, never changed, but for `release`, which takes back what a failed run left behind.
 */
import { execFile } from "node:child_process";
import { readdirSync } from "node:fs";
import { promisify } from "node:util";
import { backendPrefix } from "../../src/attachment/kernel-devices.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { nullLog } from "../../src/base/log.ts";
import { listMounts, type MountEntry } from "../../src/host/mount.ts";
import { runProgram } from "../../src/host/process.ts";
import { NbdSysfs } from "../../src/nbd/kernel/device-state.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";

const programTimeoutMs = 30_000;
/** What a filesystem or a device says when somebody's data was refused or lost. */
const trouble =
  /I\/O error|EXT4-fs (error|warning)|Aborting journal|lost .*page write|[Rr]emounting filesystem read-only/;

export function kernelVersion(): Promise<string> {
  return firstLine("uname", ["-sr"]);
}

/** Devices that are configured for a volume of one of these nodes, as "nbd7 (identifier)". */
export function configuredDevices(nodeIds: readonly string[]): string[] {
  return ownDevices(nodeIds).map(({ index, backendIdentifier }) => `nbd${index} (${backendIdentifier})`);
}

export async function mountsBelow(directory: string): Promise<MountEntry[]> {
  return (await listMounts()).filter((mount) => mount.mountPoint.startsWith(`${directory}/`));
}

/** Unmounts and disconnects by force what nobody ends in order any more. */
export async function release(directory: string, nodeIds: readonly string[]): Promise<void> {
  for (const { mountPoint } of (await mountsBelow(directory)).toReversed()) {
    await runProgram("umount", ["-l", "--", mountPoint], { timeoutMs: programTimeoutMs });
  }
  const left = ownDevices(nodeIds);
  if (left.length === 0) return;
  const kernel = await openKernelNbd({ clock: systemClock, log: nullLog });
  for (const { index, backendIdentifier = "" } of left) {
    await kernel.disconnect({ index, backendIdentifier, force: true });
  }
}

/** The kernel's log from now on; undefined where this user may not read it. */
export class KernelLog {
  readonly #seen: number;
  readonly #last: string;

  private constructor(lines: readonly string[]) {
    this.#seen = lines.length;
    this.#last = lines.at(-1) ?? "";
  }

  static async open(): Promise<KernelLog | undefined> {
    const lines = await readLog();
    return lines === undefined ? undefined : new KernelLog(lines);
  }

  /** Lines since `open` that name trouble of a device or of a filesystem on it. */
  async trouble(deviceName: string): Promise<string[]> {
    const lines = (await readLog()) ?? [];
    // The log is a ring: what was its last line may have moved up, or be gone.
    const at = this.#seen === 0 ? -1 : lines.lastIndexOf(this.#last);
    return lines.slice(at + 1).filter((line) => line.includes(deviceName) && trouble.test(line));
  }
}

async function readLog(): Promise<string[] | undefined> {
  try {
    const { stdout } = await promisify(execFile)("dmesg", { maxBuffer: 64 * 1024 ** 2, timeout: programTimeoutMs });
    return stdout === "" ? [] : stdout.trimEnd().split("\n");
  } catch {
    return undefined;
  }
}

/** Bytes reach the volume: what is dirty in the kernel's memory for the filesystem at `path` is written and flushed. */
export async function syncFileSystem(path: string): Promise<void> {
  const result = await runProgram("sync", ["-f", "--", path], { timeoutMs: 10 * 60_000 });
  if (result.status !== 0) throw new Error(`sync failed: ${result.stderr}`);
}

/** Names in a directory; none where there is no such directory. */
export function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function ownDevices(nodeIds: readonly string[]) {
  const isOurs = (backend: string | undefined): boolean =>
    nodeIds.some((id) => backend?.startsWith(backendPrefix(id)) === true);
  return new NbdSysfs().list().filter((device) => device.connected && isOurs(device.backendIdentifier));
}

async function firstLine(program: string, args: readonly string[]): Promise<string> {
  const { stdout } = await runProgram(program, args, { timeoutMs: programTimeoutMs });
  return stdout.toString().trim().split("\n")[0];
}
