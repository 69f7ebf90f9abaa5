/**
 * Waiting for a kernel device to become what it shall be, and proving that it answers. Both are bounded by a deadline.
 * The proof runs in a process of its own: a read that nobody answers cannot be interrupted, and must keep no thread of
 * this process. Such a process ends by itself once the device answers or is disconnected.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import type { Clock } from "../../base/clock.ts";
import { OperationError } from "../../base/errors.ts";

const POLL_INTERVAL_MS = 5;
const PROBE_SIZE_BYTES = 4096;
const programs = ["/usr/bin/dd", "/bin/dd"];

/** True once `condition` holds, false where it still does not at the deadline. */
export async function waitUntil(clock: Clock, deadlineMs: number, condition: () => boolean): Promise<boolean> {
  const endMs = clock.monotonicMs() + deadlineMs;
  while (!condition()) {
    if (clock.monotonicMs() >= endMs) return false;
    await clock.sleep(POLL_INTERVAL_MS);
  }
  return true;
}

/** Reads the first 4 KiB of a device past the page cache. */
export async function probeDevice(clock: Clock, devicePath: string, deadlineMs: number): Promise<void> {
  const program = programs.find((path) => existsSync(path));
  if (program === undefined) {
    throw new OperationError("unavailable", "cannot read a device for proof: the program dd is missing");
  }
  const late = Promise.withResolvers<never>();
  const words = [
    `if=${devicePath}`,
    "of=/dev/null",
    `bs=${PROBE_SIZE_BYTES}`,
    "count=1",
    "iflag=direct",
    "status=none",
  ];
  const ended = Promise.withResolvers<void>();
  const child = execFile(
    program,
    words,
    { env: {}, killSignal: "SIGKILL", maxBuffer: 65536 },
    (error, _out, stderr) => {
      if (error === null) ended.resolve();
      else ended.reject(unanswered(devicePath, stderr.trim(), error));
    },
  );
  const timer = clock.after(deadlineMs, () => {
    child.kill("SIGKILL");
    child.unref();
    late.reject(unanswered(devicePath, "no answer", new Error(`no answer within ${deadlineMs} ms`)));
  });
  ended.promise.catch(() => {});
  try {
    await Promise.race([ended.promise, late.promise]);
  } finally {
    timer.cancel();
  }
}

function unanswered(devicePath: string, reason: string, cause: Error): OperationError {
  return new OperationError("unavailable", "a kernel device does not answer", {
    cause,
    context: { devicePath, reason },
  });
}
