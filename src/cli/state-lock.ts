/**
 * One server per state directory: two would write one journal. The lock is an abstract unix socket named after the
 * directory: the kernel gives it to one process at a time and takes it back when that process dies, however it dies.
 * It holds within a network namespace, which is the host's where kernel devices are served.
 *
 * Who waits for the lock connects to that socket: the connection ends in the moment in which the lock is free. Anybody on
 * the machine may connect, so there is a bound, and who is turned away looks again every 100 ms.
 */
import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { connect, createServer } from "node:net";
import type { Server } from "node:net";
import { resolve as resolvePath } from "node:path";
import { makeDurableDirectory } from "../base/durable-directory.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { systemClock } from "../base/system-clock.ts";

const firstRetryMs = 2;
const longestRetryMs = 100;
/** Processes that may wait at the same time and be told at once. */
const mostWatchers = 8;

export interface LockOptions {
  /** How long it waits at most for a process that is about to end. */
  waitSeconds: number;
  /** A standby waits without a bound until this resolves, when the process before it has ended. Default: at once. */
  turn?: Promise<void>;
  log: Log;
}

/**
 * Resolves once this process has the lock, which it holds until it ends. "in-use" where another one does not let go of
 * it in time; "unavailable" where the directory cannot be had.
 */
export async function lockDirectory(path: string, { waitSeconds, turn, log }: LockOptions): Promise<void> {
  const name = await lockName(path);
  if ((await listen(name)) !== undefined) return;
  const warn = (): void => log.warn("another server uses the state directory: waiting for its end", { stateDir: path });
  if (turn === undefined) warn();
  let isLate = false;
  const late = (turn ?? Promise.resolve())
    .then(() => systemClock.sleep(waitSeconds * 1000))
    .then(() => (isLate = true));
  for (let retryMs = firstRetryMs; ; retryMs = Math.min(retryMs * 2, longestRetryMs)) {
    const fromMs = systemClock.monotonicMs();
    await Promise.race([untilReleased(name), late]);
    if ((await listen(name)) !== undefined) return;
    if (isLate) {
      throw new OperationError(
        "in-use",
        "another server uses the state directory: stop it, or give another --state-dir",
        { context: { stateDir: path } },
      );
    }
    // A long wait has ended with the holder, whose name may be a moment behind its connections.
    if (systemClock.monotonicMs() - fromMs > longestRetryMs) retryMs = firstRetryMs;
    await systemClock.sleep(retryMs);
  }
}

/** Resolves when the holder's end of a connection has gone, at once where there is none to be had. */
function untilReleased(name: string): Promise<void> {
  return new Promise((resolve) => {
    const socket = connect(name);
    socket.resume();
    // An error is followed by "close" as well.
    socket.on("error", () => {});
    socket.once("close", () => resolve());
  });
}

/** The same for every path to one directory. */
async function lockName(path: string): Promise<string> {
  try {
    await makeDurableDirectory(resolvePath(path));
    const { dev, ino } = await stat(path, { bigint: true });
    const hash = createHash("sha256").update(`${dev}:${ino}`).digest("hex").slice(0, 32);
    return `\0s3block-state-${hash}`;
  } catch (cause) {
    throw new OperationError(
      "unavailable",
      `the state directory cannot be used (${describe(cause)}): give another --state-dir`,
      {
        cause,
        context: { stateDir: path },
      },
    );
  }
}

function listen(name: string): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      socket.on("error", () => {});
      // What it says is thrown away; its end must be noticed.
      socket.resume();
      socket.unref();
    });
    server.maxConnections = mostWatchers;
    server.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE") resolve(undefined);
      else
        reject(
          new OperationError("unavailable", `the state directory cannot be locked (${describe(error)})`, {
            cause: error,
          }),
        );
    });
    server.listen(name, () => resolve(server));
  });
}
