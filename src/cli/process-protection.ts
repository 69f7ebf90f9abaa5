/**
 * What protects a process. Its secrets (keys of the store, data of volumes): no core dump of its memory, no debugger, no
 * look into it for other processes of its user. Its life, for a server of block devices, when memory is short: the
 * kernel must not wait for memory that waits for this process (PR_SET_IO_FLUSHER), nor choose it as a victim
 * (oom_score_adj). What a machine for tests does not give is logged, and the process goes on.
 */
import { writeFile } from "node:fs/promises";
import { describe } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { becomeIoFlusher } from "../nbd/kernel/io-flusher.ts";
import { loadLibc } from "../nbd/kernel/libc.ts";

/**
 * From now on the memory of the process is its own: there are no core dumps of it, other processes of its user can neither
 * trace it nor read its environment, and SIGUSR1 opens no debugger. It ends with execve: call it after markProcess.
 */
export async function keepMemoryPrivate(log: Log): Promise<void> {
  // Node opens its inspector on a port of the machine at this signal, unless somebody listens for it.
  process.on("SIGUSR1", () => log.warn("a debugger was asked for and refused", { operation: "debug" }));
  try {
    (await loadLibc()).forbidDumps();
  } catch (error) {
    const message = "a crash may write the memory of this process, secrets included, into a file";
    log.warn(message, { operation: "start", error: describe(error) });
  }
}

/**
 * Call it before anything is loaded that takes time, and before any thread is started. Threads of V8 and libuv run
 * already and do not inherit the mark: so once it is set, the process replaces itself by the same program, which then
 * has it on every thread, and begins anew.
 */
export async function markProcess(): Promise<void> {
  const { state } = await becomeIoFlusher();
  if (state !== "set" || process.execve === undefined) return;
  process.execve(process.execPath, [process.execPath, ...process.execArgv, ...process.argv.slice(1)], process.env);
}

/**
 * Bodies of requests to a store come and go in pieces of 64 KiB and more. malloc would keep what was freed of them between
 * what is in use: measured, 440 to 470 instead of 350 MiB for good after ten minutes of a busy server.
 */
const largePieceBytes = 64 * 1024;

/** Has what is freed go back to the kernel, as far as the C library can be told to. */
export async function returnFreedMemory(log: Log): Promise<void> {
  try {
    if ((await loadLibc()).mapLargePieces(largePieceBytes)) return;
    log.debug("this C library cannot be told to give freed memory back", { operation: "start" });
  } catch (error) {
    log.warn("the process may take more memory than it needs", { operation: "start", error: describe(error) });
  }
}

/** Keeps the process from being chosen when memory runs out, and tells how far it is protected. */
export async function protectProcess(log: Log): Promise<void> {
  const outcome = await becomeIoFlusher();
  try {
    await writeFile("/proc/self/oom_score_adj", "-1000");
  } catch (error) {
    log.warn("the process may be chosen when memory runs out", { operation: "start", error: describe(error) });
  }
  if (outcome.state === "refused") {
    const message = "the process is no io flusher: it may stall with its own devices when memory runs out";
    log.warn(message, { operation: "start", reason: outcome.reason });
  } else {
    log.info("the process is protected against shortage of memory", { operation: "start" });
  }
}
