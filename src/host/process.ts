/**
 * Runs one program of the machine with a deadline: mount, mkfs, fsck and their like.
 * - No shell, ever. Arguments are an array; values that came from a request stand after "--" or behind an option that
 *   takes them, and the caller has validated them.
 * - The program is an absolute path out of a fixed list of directories, its environment PATH and LC_ALL alone.
 * - At the deadline the whole process group is killed. A program that outlives SIGKILL (it hangs in the kernel, in
 *   "D" state) is given up with "busy": the caller is free again. Until it has ended, the same command line answers
 *   "busy" at once, so that retries never pile up hanging processes.
 * - A program may outlive this process, as an orphan that waits for a silent device. Programs that work on one device
 *   therefore run under a lock on it (flock(1) and flock(2) on the device's node), which ends with them: what a new
 *   process starts on the device waits for what a dead one left behind. udev takes the same lock while it probes.
 * - Output is capped; a program that writes more is not disturbed, the rest is dropped.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { OperationError } from "../base/errors.ts";

const directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const killGraceMs = 2000;
const maxOutputBytes = 64 * 1024;
const lockTimeoutSeconds = 5;
/** No program that we run exits with this status. */
const lockConflictStatus = 75;

export interface RunOptions {
  /** From start to SIGKILL. */
  timeoutMs: number;
  /** Path of a device: the program has it to itself among programs run this way, "busy" where that takes too long. */
  lockPath?: string;
  /** Given to the program as its standard input; else it has an empty one. */
  input?: Buffer;
  /** Directories to find the program in, instead of the fixed list: for tests. */
  directories?: readonly string[];
}

export interface RunResult {
  /** Exit status; a program killed by a signal of others is 128 + its number, as in a shell. */
  status: number;
  /** At most 64 KiB each. */
  stdout: Buffer;
  stderr: string;
}

/** Command lines whose process did not end after SIGKILL. */
const stuck = new Map<string, ChildProcess>();

/** The absolute path of `program`; "unavailable" naming the way out where the machine has none. */
export function mustFindProgram(program: string, searched: readonly string[] = directories): string {
  for (const directory of searched) {
    const path = `${directory}/${program}`;
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      continue;
    }
  }
  throw new OperationError("unavailable", "a program is missing: install its package on the node or in the image", {
    context: { program, searched: searched.join(":") },
  });
}

/**
 * Runs `program` to its end and returns what it said, whatever its exit status.
 * Errors: "unavailable" (program missing or not startable, or killed at its deadline), "busy" (still hangs in the
 * kernel after SIGKILL, now or since an earlier call with the same arguments; or the device is locked).
 */
export async function runProgram(program: string, args: readonly string[], options: RunOptions): Promise<RunResult> {
  const [path, ...argv] = commandLine(program, args, options);
  const key = [path, ...argv].join("\0");
  if (stuck.has(key)) throw stuckError(program, "an earlier run of it still hangs in the kernel");
  return new Promise((resolve, reject) => {
    const child = spawn(path, argv, {
      env: { PATH: directories.join(":"), LC_ALL: "C" },
      cwd: "/",
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    // A program that ends without reading its input is judged by its exit status.
    child.stdin.on("error", () => {});
    child.stdin.end(options.input);
    const stdout = collect(child.stdout);
    const stderr = collect(child.stderr);
    let expired = false;
    let graceTimer: NodeJS.Timeout | undefined;
    const deadline = setTimeout(() => {
      expired = true;
      killGroup(child);
      graceTimer = setTimeout(() => {
        stuck.set(key, child);
        child.stdin.destroy();
        child.stdout.destroy();
        child.stderr.destroy();
        child.unref();
        reject(stuckError(program, "it hangs in the kernel and does not end when killed"));
      }, killGraceMs);
    }, options.timeoutMs);
    const settle = (): void => {
      clearTimeout(deadline);
      clearTimeout(graceTimer);
      stuck.delete(key);
    };
    child.on("error", (cause) => {
      settle();
      reject(new OperationError("unavailable", "a program could not be started", { cause, context: { program } }));
    });
    child.on("exit", () => {
      // Whatever the program left behind in its group would hold the pipes open.
      killGroup(child);
    });
    child.on("close", (code, signal) => {
      settle();
      if (expired) {
        reject(
          new OperationError("unavailable", "a program was killed at its deadline", {
            context: { program, timeoutMs: options.timeoutMs },
          }),
        );
        return;
      }
      if (options.lockPath !== undefined && code === lockConflictStatus) {
        reject(
          new OperationError("busy", "an earlier command still works on the device: retry", {
            context: { program, device: options.lockPath },
          }),
        );
        return;
      }
      resolve({ status: code ?? 128 + signalNumber(signal), stdout: stdout(), stderr: stderr().toString("utf8") });
    });
  });
}

/** Like runProgram; any exit status but 0 is "unavailable" with the end of what the program said. */
export async function mustRunProgram(
  program: string,
  args: readonly string[],
  options: RunOptions,
): Promise<RunResult> {
  const result = await runProgram(program, args, options);
  if (result.status !== 0) throw failedProgram(program, result);
  return result;
}

/** The error for a run that ended badly: "unavailable", with the end of what the program said. */
export function failedProgram(program: string, result: RunResult): OperationError {
  return new OperationError("unavailable", `${program} failed: ${lastWords(result)}`, {
    context: { status: result.status },
  });
}

/** The end of a program's output as one printable line, for an error message. */
export function lastWords(result: RunResult): string {
  const text = (result.stderr.trim() || result.stdout.toString("utf8").trim()).replace(/[^\x20-\x7e]+/g, " ");
  return text === "" ? "it said nothing" : text.slice(-400);
}

function commandLine(program: string, args: readonly string[], options: RunOptions): [string, ...string[]] {
  const path = mustFindProgram(program, options.directories);
  if (options.lockPath === undefined) return [path, ...args];
  const limits = ["--timeout", String(lockTimeoutSeconds), "--conflict-exit-code", String(lockConflictStatus)];
  return [mustFindProgram("flock"), "--exclusive", "--no-fork", ...limits, options.lockPath, path, ...args];
}

function stuckError(program: string, reason: string): OperationError {
  return new OperationError("busy", `${reason}; retry once the device answers again`, { context: { program } });
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    // The group is gone.
  }
}

function collect(stream: NodeJS.ReadableStream): () => Buffer {
  const chunks: Buffer[] = [];
  let size = 0;
  stream.on("data", (chunk: Buffer) => {
    if (size >= maxOutputBytes) return;
    chunks.push(chunk);
    size += chunk.length;
  });
  return () => Buffer.concat(chunks).subarray(0, maxOutputBytes);
}

function signalNumber(signal: NodeJS.Signals | null): number {
  return signal === "SIGKILL" ? 9 : 15;
}
