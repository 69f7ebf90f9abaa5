/**
 * s3block server --standby: this process keeps a server and its standby (supervisor.ts) as children, and loads nothing
 * of the program itself. They lead sessions of their own, so that Ctrl-C on a terminal reaches this process alone, which
 * then ends them in order; and they write to the same standard output.
 */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { flushCompileCache } from "node:module";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";
import { describe } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { systemClock } from "../base/system-clock.ts";
import { systemRandom } from "../base/system-random.ts";
import type { FlagValues } from "./flags.ts";
import { dieOfBugs, nodeIdOf, startLogging } from "./process.ts";
import { keepMemoryPrivate, protectProcess } from "./process-protection.ts";
import type { Progress, Role } from "./supervision.ts";
import { type Child, type Ending, Supervisor } from "./supervisor.ts";

const programPath = fileURLToPath(new URL("supervised-server.ts", import.meta.url));
/** A process that could not even be started has ended like one with a bug. */
const notStarted: Ending = { code: 70, signal: null };

/** Runs the server with `args` (what stands after the command's name) until its end, and ends with its exit code. */
export async function superviseServer(values: FlagValues, args: readonly string[]): Promise<never> {
  const { log } = startLogging(values, { process: "supervisor", nodeId: nodeIdOf(values), pid: process.pid });
  dieOfBugs(log);
  await keepMemoryPrivate(log);
  // Before there is a child: children inherit the protection.
  await protectProcess(log);
  const supervisor = new Supervisor({
    start: (role) => startProcess(role, args, log),
    clock: systemClock,
    random: systemRandom,
    log,
  });
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      log.info("signal received", { operation: "stop", signal });
      void supervisor.end(signal);
    });
  }
  const ended = supervisor.run();
  // Found compiled the next time, this process takes half the memory: it loads nothing that reads TypeScript then.
  flushCompileCache();
  const { code, signal } = await ended;
  process.exit(signal === null ? (code ?? notStarted.code) : 128 + constants.signals[signal]);
}

function startProcess(role: Role, args: readonly string[], log: Log): Child {
  const words = [...process.execArgv, programPath, role, ...args];
  const child = spawn(process.execPath, words, {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    detached: true,
  });
  return {
    pid: child.pid ?? 0,
    ended: endOf(child, log),
    onProgress: (listener) => void child.on("message", (message: Progress) => listener(message.type)),
    send: (turn) => void child.send(turn, () => {}),
    kill: (signal) => void child.kill(signal),
  };
}

function endOf(child: ChildProcess, log: Log): Promise<Ending> {
  return new Promise((resolve) => {
    child.once("exit", (code, signal) => resolve({ code, signal }));
    child.on("error", (error) => {
      log.error("a process of the server cannot be reached", { operation: "supervise", error: describe(error) });
      if (child.pid === undefined) resolve(notStarted);
    });
  });
}
