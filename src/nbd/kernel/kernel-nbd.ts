/**
 * Finds the way to this machine's nbd devices: netlink where the kernel offers the family, else ioctl; and says what
 * is missing where there is neither. The one place that puts the parts of this room together.
 */
import type { Clock } from "../../base/clock.ts";
import { OperationError } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import { NbdSysfs } from "./device-state.ts";
import { IoctlNbd } from "./ioctl-nbd.ts";
import { type Libc, loadLibc } from "./libc.ts";
import type { KernelNbd } from "./nbd-device.ts";
import { CONTROLLER_FAMILY, decodeFamily, encodeGetFamily } from "./nbd-messages.ts";
import { NetlinkNbd, type NetlinkNbdParts } from "./netlink-nbd.ts";
import { NetlinkError, requestNetlink } from "./netlink-socket.ts";

const FAMILY_DEADLINE_MS = 5_000;

export interface KernelNbdOptions {
  clock: Clock;
  log: Log;
  /** Default "auto": netlink where it is to be had. */
  interface?: "auto" | "netlink" | "ioctl";
}

/** "unavailable", naming the way out, where this kernel has no nbd driver or the binding does not load. */
export async function openKernelNbd(options: KernelNbdOptions): Promise<KernelNbd> {
  const { clock, log } = options;
  const libc = await loadLibc();
  const sysfs = new NbdSysfs();
  const deviceRoot = "/dev";
  const way = options.interface ?? "auto";
  const family = way === "ioctl" ? undefined : await findFamily(libc, clock);
  if (family !== undefined) {
    const request: NetlinkNbdParts["request"] = (payload, deadlineMs, whenHandled) =>
      requestNetlink({ libc, clock }, { family, payload, deadlineMs, whenHandled });
    return new NetlinkNbd({ libc, clock, log, sysfs, deviceRoot, request });
  }
  if (!sysfs.hasDriver()) {
    throw new OperationError(
      "unavailable",
      "this kernel has no nbd driver loaded: run `modprobe nbd max_part=0` as root",
    );
  }
  if (way === "netlink") {
    throw new OperationError(
      "unavailable",
      "the nbd driver is loaded but its netlink family is not visible: before Linux 6.4 the process must be in the " +
        "initial network namespace (hostNetwork: true)",
    );
  }
  log.warn(
    "attaching by ioctl: devices do not survive a restart of this process (for netlink, Linux 5.14 is needed, and " +
      "before 6.4 hostNetwork: true)",
  );
  return new IoctlNbd({ libc, clock, log, sysfs, deviceRoot });
}

/** The number of the family "nbd", or undefined where the kernel does not show it to this process. */
async function findFamily(libc: Libc, clock: Clock): Promise<number | undefined> {
  try {
    const payloads = await requestNetlink(
      { libc, clock },
      { family: CONTROLLER_FAMILY, payload: encodeGetFamily(), deadlineMs: FAMILY_DEADLINE_MS },
    );
    return payloads.length === 0 ? undefined : decodeFamily(payloads[0]);
  } catch (error) {
    if (error instanceof NetlinkError) return undefined;
    if (error instanceof OperationError && error.kind === "unavailable") return undefined;
    throw error;
  }
}
