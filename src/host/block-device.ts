/**
 * A block device of this node as others see it: number, size, claims, and single 4 KiB blocks of its content.
 * Content is read and written by dd(1) in a process of its own, past the page cache: a device whose server is silent
 * hangs that process until its deadline, never one of our few I/O threads.
 */
import { open, readFile, stat } from "node:fs/promises";
import { constants } from "node:fs";
import { assert } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import { isKind, OperationError } from "../base/errors.ts";
import { failedProgram, runProgram } from "./process.ts";

/** Unit of readBlock and writeBlock, whatever the device's own block size. */
export const DEVICE_BLOCK_BYTES = 4096;
const devicePathPattern = /^\/dev\/[A-Za-z0-9_/-]+$/;
const sectorBytes = 512;
const blockTimeoutMs = 60_000;
const discardTimeoutMs = 10 * 60_000;
const pollMs = 50;

export interface DeviceNumber {
  major: number;
  minor: number;
}

/** The device behind a node of /dev, or behind any path that a device is bound to; undefined where it is none. */
export async function getDeviceNumber(path: string): Promise<DeviceNumber | undefined> {
  try {
    const status = await stat(path, { bigint: true });
    return status.isBlockDevice() ? splitDeviceNumber(status.rdev) : undefined;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw new OperationError("unavailable", "a path cannot be looked at", { cause: error, context: { path } });
  }
}

/** Linux's dev_t as glibc lays it out (bits/sysmacros.h). */
export function splitDeviceNumber(device: bigint): DeviceNumber {
  return {
    major: Number(((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n)),
    minor: Number((device & 0xffn) | ((device >> 12n) & 0xffffff00n)),
  };
}

export function isSameDevice(a: DeviceNumber, b: DeviceNumber): boolean {
  return a.major === b.major && a.minor === b.minor;
}

/** Size in bytes by /sys; undefined where the kernel has no such device. */
export async function getDeviceSize(device: DeviceNumber): Promise<number | undefined> {
  try {
    const text = await readFile(`/sys/dev/block/${device.major}:${device.minor}/size`, "utf8");
    return Number(text) * sectorBytes;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw new OperationError("unavailable", "the size of a device cannot be read", { cause: error });
  }
}

/**
 * Waits until `path` is a block device of `sizeBytes`: the kernel makes the node a moment after it has the device.
 * Errors: "unavailable" after `timeoutMs`.
 */
export async function waitForDevice(
  path: string,
  options: { sizeBytes: number; timeoutMs: number; clock: Clock },
): Promise<DeviceNumber> {
  assertDevicePath(path);
  const deadlineMs = options.clock.monotonicMs() + options.timeoutMs;
  for (;;) {
    const device = await getDeviceNumber(path);
    const sizeBytes = device === undefined ? undefined : await getDeviceSize(device);
    if (device !== undefined && sizeBytes === options.sizeBytes) return device;
    if (options.clock.monotonicMs() >= deadlineMs) {
      throw new OperationError("unavailable", "the device did not appear with its size: is /dev that of the host?", {
        context: { device: path, expectedBytes: options.sizeBytes, foundBytes: sizeBytes ?? "none" },
      });
    }
    await options.clock.sleep(pollMs);
  }
}

/**
 * True while a filesystem or another exclusive user holds the device, in whatever mount namespace: the kernel refuses
 * a second exclusive opener (open(2), O_EXCL on block devices). False where there is no such device.
 */
export async function isDeviceClaimed(path: string): Promise<boolean> {
  assertDevicePath(path);
  try {
    const handle = await open(path, constants.O_RDONLY | constants.O_EXCL);
    await handle.close();
    return false;
  } catch (error) {
    if (errorCode(error) === "EBUSY") return true;
    if (isMissing(error)) return false;
    throw new OperationError("unavailable", "a device cannot be opened", { cause: error, context: { device: path } });
  }
}

/** Reads DEVICE_BLOCK_BYTES at `offset` (a multiple of them), from the device and not from a cache. */
export async function readBlock(path: string, offset: number): Promise<Buffer> {
  const args = [`if=${path}`, `skip=${blockIndex(path, offset)}`, "iflag=direct", "count=1"];
  const result = await runProgram("dd", [...args, `bs=${DEVICE_BLOCK_BYTES}`, "status=none"], {
    timeoutMs: blockTimeoutMs,
    lockPath: path,
  });
  if (result.status !== 0) throw failedProgram("dd", result);
  if (result.stdout.length !== DEVICE_BLOCK_BYTES) {
    throw new OperationError("corrupt", "a device ended before its size", { context: { device: path, offset } });
  }
  return result.stdout;
}

/** Writes one block of DEVICE_BLOCK_BYTES at `offset`; durable (the device was flushed) when it resolves. */
export async function writeBlock(path: string, offset: number, block: Buffer): Promise<void> {
  assert(block.length === DEVICE_BLOCK_BYTES, "a block of a device has 4096 bytes");
  const args = [`of=${path}`, `seek=${blockIndex(path, offset)}`, "oflag=direct", "iflag=fullblock", "count=1"];
  const result = await runProgram(
    "dd",
    [...args, `bs=${DEVICE_BLOCK_BYTES}`, "conv=notrunc,nocreat,fsync", "status=none"],
    { timeoutMs: blockTimeoutMs, lockPath: path, input: block },
  );
  if (result.status !== 0) throw failedProgram("dd", result);
}

/** Trims [0, lengthBytes): our devices read as zeroes there afterwards, and so do loop devices. */
export async function discardDevice(path: string, lengthBytes: number): Promise<void> {
  assertDevicePath(path);
  const result = await runProgram("blkdiscard", ["--length", String(lengthBytes), "--", path], {
    timeoutMs: discardTimeoutMs,
    lockPath: path,
  });
  if (result.status !== 0) throw failedProgram("blkdiscard", result);
}

/** Writes back what the page cache holds of the device and flushes the device. */
export async function flushDevice(path: string): Promise<void> {
  assertDevicePath(path);
  const result = await runProgram("blockdev", ["--flushbufs", path], { timeoutMs: blockTimeoutMs, lockPath: path });
  if (result.status !== 0) throw failedProgram("blockdev", result);
}

/** Throws "invalid" for anything but a plain path below /dev. */
export function mustDevicePath(path: string): string {
  if (devicePathPattern.test(path) && !path.includes("//")) return path;
  throw new OperationError("invalid", "the data plane named a device that is no path below /dev", {
    context: { device: JSON.stringify(path.slice(0, 128)) },
  });
}

/** True for the errors of a path that leads nowhere. */
export function isMissing(error: unknown): boolean {
  if (isKind(error, "not-found")) return true;
  const code = errorCode(error);
  return code === "ENOENT" || code === "ENOTDIR" || code === "ENXIO" || code === "ENODEV";
}

function blockIndex(path: string, offset: number): number {
  assertDevicePath(path);
  assert(offset >= 0 && offset % DEVICE_BLOCK_BYTES === 0, "blocks of a device are aligned");
  return offset / DEVICE_BLOCK_BYTES;
}

function assertDevicePath(path: string): void {
  assert(devicePathPattern.test(path), "device paths are validated at the doorway");
}

function errorCode(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException | undefined)?.code;
}
