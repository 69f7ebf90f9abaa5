/**
 * One server per state directory: two would write one journal. The lock is an abstract unix socket named after the
 * directory: the kernel gives it to one process at a time and takes it back when that process dies, however it dies.
 * It holds within a network namespace, which is the host's where kernel devices are served.
 */
import { createHash } from "node:crypto";
import { mkdir, stat } from "node:fs/promises";
import { createServer } from "node:net";
import type { Server } from "node:net";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { systemClock } from "../base/system-clock.ts";

const retryMs = 100;

/**
 * Waits at most `waitSeconds` for a server that is about to end. "in-use" where it does not; "unavailable" where the
 * directory cannot be had. The lock is held until the process ends.
 */
export async function lockDirectory(path: string, waitSeconds: number, log: Log): Promise<void> {
  const name = await lockName(path);
  const deadlineMs = systemClock.monotonicMs() + waitSeconds * 1000;
  for (let attempt = 0; ; attempt += 1) {
    if ((await listen(name)) !== undefined) return;
    if (attempt === 0) log.warn("another server uses the state directory: waiting for its end", { stateDir: path });
    if (systemClock.monotonicMs() > deadlineMs) {
      throw new OperationError(
        "in-use",
        "another server uses the state directory: stop it, or give another --state-dir",
        {
          context: { stateDir: path },
        },
      );
    }
    await systemClock.sleep(retryMs);
  }
}

/** The same for every path to one directory. */
async function lockName(path: string): Promise<string> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
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
    const server = createServer((socket) => socket.destroy());
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
