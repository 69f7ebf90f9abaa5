/**
 * What the kernel says of its nbd devices, read from sysfs and procfs: these reads take no lock of the driver and wait
 * for nothing, even while a device is dead or its queue frozen (the netlink command STATUS can wait, hence is not used).
 * "Connected" means configured: the socket may be dead all the same.
 * Source: Linux drivers/block/nbd.c (attributes pid, backend), Documentation/ABI/stable/sysfs-block.
 */
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { OperationError } from "../../base/errors.ts";

export interface NbdDeviceState {
  index: number;
  /** Configured by netlink or ioctl; says nothing of whether anybody answers. */
  connected: boolean;
  /** Identifier given when it was connected; undefined where none was (ioctl, kernels before 5.14). */
  backendIdentifier: string | undefined;
  sizeBytes: number;
  readOnly: boolean;
  /** Requests the device has taken and not completed. */
  inFlight: number;
  /** Device mapper or md devices built on it. */
  holders: readonly string[];
  major: number;
  minor: number;
}

export class NbdSysfs {
  readonly #sysRoot: string;
  readonly #procRoot: string;

  constructor(roots: { sys?: string; proc?: string } = {}) {
    this.#sysRoot = roots.sys ?? "/sys";
    this.#procRoot = roots.proc ?? "/proc";
  }

  /** True where the kernel has the nbd driver. */
  hasDriver(): boolean {
    return existsSync(join(this.#sysRoot, "module/nbd")) || existsSync(join(this.#sysRoot, "block/nbd0"));
  }

  /** All devices of the driver, by index. */
  list(): NbdDeviceState[] {
    const indexes = entries(join(this.#sysRoot, "block"))
      .map((name) => /^nbd(0|[1-9]\d*)$/.exec(name)?.[1])
      .filter((digits) => digits !== undefined)
      .map(Number)
      .sort((left, right) => left - right);
    return indexes.map((index) => this.get(index)).filter((state) => state !== undefined);
  }

  /** Undefined where the kernel has no device of this index. */
  get(index: number): NbdDeviceState | undefined {
    const directory = join(this.#sysRoot, `block/nbd${index}`);
    const numbers = /^(\d+):(\d+)$/.exec(text(join(directory, "dev")) ?? "");
    if (numbers === null) return undefined;
    return {
      index,
      connected: existsSync(join(directory, "pid")),
      backendIdentifier: text(join(directory, "backend")),
      sizeBytes: Number(text(join(directory, "size")) ?? "0") * 512,
      readOnly: text(join(directory, "ro")) === "1",
      inFlight: (text(join(directory, "inflight")) ?? "").split(/\s+/).reduce((sum, part) => sum + Number(part), 0),
      holders: entries(join(directory, "holders")),
      major: Number(numbers[1]),
      minor: Number(numbers[2]),
    };
  }

  /** How often the kernel looks after each unanswered request of the device; throws where sysfs is read-only. */
  setRequestTimer(index: number, intervalMs: number): void {
    writeFileSync(join(this.#sysRoot, `block/nbd${index}/queue/io_timeout`), String(intervalMs));
  }

  /**
   * What is seen to use the device: a holder, a mounted file system, swap; undefined where nothing is seen. A program
   * that merely has it open leaves no trace. Mounts are seen in every namespace for ext4, xfs and f2fs, otherwise in this
   * process's own and in that of process 1.
   */
  usage(state: NbdDeviceState): string | undefined {
    const name = `nbd${state.index}`;
    if (state.holders.length > 0) return `held by ${state.holders.join(", ")}`;
    for (const process of ["self", "1"]) {
      const mountPoint = this.#mountPoint(process, `${state.major}:${state.minor}`);
      if (mountPoint !== undefined) return `mounted at ${mountPoint}`;
    }
    for (const type of ["ext4", "xfs", "f2fs"]) {
      if (existsSync(join(this.#sysRoot, "fs", type, name))) return `mounted as ${type}`;
    }
    const swaps = (text(join(this.#procRoot, "swaps")) ?? "").split("\n").map((line) => line.split(/\s+/)[0]);
    return swaps.includes(`/dev/${name}`) ? "used as swap" : undefined;
  }

  #mountPoint(process: string, numbers: string): string | undefined {
    for (const line of (text(join(this.#procRoot, process, "mountinfo")) ?? "").split("\n")) {
      const fields = line.split(" ");
      if (fields[2] === numbers) return fields[4];
    }
    return undefined;
  }
}

/** A slot the kernel would give to the next connection. */
export function isFree(state: NbdDeviceState): boolean {
  return !state.connected && state.sizeBytes === 0 && state.inFlight === 0 && state.holders.length === 0;
}

/**
 * Makes sure that the node of a device is there, making it where nothing does (a container whose /dev does not follow
 * the kernel's). "conflict" where another file has its name.
 */
export function ensureDeviceNode(
  path: string,
  state: NbdDeviceState,
  makeNode: (path: string, major: number, minor: number) => void,
): void {
  for (let attempt = 0; ; attempt += 1) {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found !== undefined) {
      if (found.isBlockDevice() && found.rdev === nodeNumber(state)) return;
      throw new OperationError("conflict", "another file has the name of a kernel device: remove it", {
        context: { path },
      });
    }
    try {
      makeNode(path, state.major, state.minor);
    } catch (cause) {
      // The kernel or udev may have been faster: then the next look decides.
      if (attempt > 0) {
        throw new OperationError("unavailable", "cannot make the node of a kernel device: CAP_MKNOD is needed", {
          cause,
          context: { path },
        });
      }
    }
  }
}

/** st_rdev as Node gives it: glibc's dev_t, exact for the numbers the driver uses (major 43, minor below 2^20). */
function nodeNumber(state: NbdDeviceState): number {
  return (state.minor & 0xff) + (state.major & 0xfff) * 2 ** 8 + Math.floor(state.minor / 2 ** 8) * 2 ** 20;
}

function text(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}

function entries(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
