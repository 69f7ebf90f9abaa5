/**
 * Keeps a server: starts the process that serves and, once that is ready, a standby which goes on when it dies. Logic
 * alone: how a process is started, clock and randomness are given (supervise.ts gives the machine's).
 *
 * - The standby sees the end of the serving process by itself, at the lock of the state directory (state-lock.ts): that
 *   lock decides who serves, and a take-over waits for nobody here. The supervisor counts, logs and starts the next one.
 * - A process that dies before it was ready is a failed start. The next one waits for longer each time, and after
 *   `mostFailures` in a row the supervisor ends. The first process decides at once where it ends with a message (exit
 *   code 1 or 2): settings or store are wrong, and whoever started the supervisor is told.
 * - One that was ready may die as often as it likes: nobody else could serve its volumes.
 * - The end: the standby is ended first, then the serving process is sent the signal, and its exit code is ours.
 */
import type { Clock } from "../base/clock.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import type { Progress, Role, Turn } from "./supervision.ts";

/** How a process ended: one of the two is set. */
export interface Ending {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A process that was started. */
export interface Child {
  readonly pid: number;
  /** Resolves once it has ended; never rejects. */
  readonly ended: Promise<Ending>;
  onProgress(listener: (progress: Progress["type"]) => void): void;
  /** Nothing where it has ended. */
  send(turn: Turn): void;
  kill(signal: NodeJS.Signals): void;
}

export interface SupervisorParts {
  start(role: Role): Child;
  clock: Clock;
  random: Pick<Random, "fraction">;
  log: Log;
}

/** Failed starts in a row after which the supervisor ends. */
export const mostFailures = 6;
/**
 * Between a process that is ready and the start of its standby: the standby's start takes about a second of processor
 * time, which belongs to users that have just been stalled.
 */
const settleMs = 2000;
const firstPauseMs = 500;
const longestPauseMs = 30_000;

export class Supervisor {
  readonly #parts: SupervisorParts;
  readonly #finished = Promise.withResolvers<Ending>();
  #serving: Child | undefined;
  #isReady = false;
  #standby: Child | undefined;
  #pause = new AbortController();
  #takeovers = 0;
  #wasEverReady = false;
  /** Of serving processes, and of standbys, that came to nothing, in a row. */
  #failures = 0;
  #standbyFailures = 0;
  #isEnding = false;

  constructor(parts: SupervisorParts) {
    this.#parts = parts;
  }

  /** Resolves with the end of the last serving process when there is to be no other. */
  run(): Promise<Ending> {
    this.#serve(this.#parts.start("server"));
    return this.#finished.promise;
  }

  /** Ends all processes in order; a second call has the serving process end at once. */
  async end(signal: NodeJS.Signals): Promise<void> {
    if (this.#isEnding) return this.#serving?.kill(signal);
    this.#isEnding = true;
    this.#pause.abort();
    // It must be gone before the lock is free. It holds nothing: nothing of it needs an orderly end.
    this.#standby?.kill("SIGKILL");
    await this.#standby?.ended;
    if (this.#serving === undefined) this.#finished.resolve({ code: 0, signal: null });
    else this.#serving.kill(signal);
  }

  #serve(child: Child): void {
    this.#serving = child;
    this.#isReady = false;
    child.onProgress((progress) => {
      if (progress === "ready" && this.#serving === child) this.#becameReady();
    });
    void child.ended.then((ending) => this.#servingEnded(child, ending));
    this.#parts.log.info("a process serves", { operation: "supervise", servingPid: child.pid });
  }

  #becameReady(): void {
    this.#isReady = true;
    this.#wasEverReady = true;
    this.#failures = 0;
    this.#after(settleMs, () => this.#startStandby());
  }

  #servingEnded(child: Child, ending: Ending): void {
    const { log } = this.#parts;
    this.#pause.abort();
    this.#serving = undefined;
    if (this.#isEnding) return this.#finished.resolve(ending);
    if (!this.#isReady) this.#failures += 1;
    const fields = {
      operation: "supervise",
      endedPid: child.pid,
      cause: causeOf(ending),
      failedStarts: this.#failures,
    };
    const isRefusal = !this.#wasEverReady && (ending.code === 1 || ending.code === 2);
    if (isRefusal || this.#failures >= mostFailures) {
      log.error("the server cannot be kept: the supervisor ends", fields);
      this.#isEnding = true;
      this.#standby?.kill("SIGKILL");
      return this.#finished.resolve(ending);
    }
    this.#takeovers += 1;
    const successor = this.#standby;
    if (successor === undefined) {
      const waitMs = this.#pauseMs(this.#failures);
      log.error("the serving process has ended: another one is started", { ...fields, waitMs: Math.round(waitMs) });
      return this.#after(waitMs, () => this.#succeed(this.#parts.start("server")));
    }
    log.error("the serving process has ended: its standby goes on", { ...fields, nextPid: successor.pid });
    this.#standby = undefined;
    this.#succeed(successor);
  }

  #succeed(child: Child): void {
    child.send({ type: "turn", takeovers: this.#takeovers });
    this.#serve(child);
  }

  /** One thing at a time is waited for, and nothing once the serving process has ended or all are to end. */
  #after(ms: number, action: () => void): void {
    this.#pause = new AbortController();
    void this.#parts.clock.sleep(ms, this.#pause.signal).then(action, () => {});
  }

  #startStandby(): void {
    const { log } = this.#parts;
    const child = this.#parts.start("standby");
    this.#standby = child;
    child.onProgress((progress) => {
      if (progress !== "standing-by" || this.#standby !== child) return;
      this.#standbyFailures = 0;
      log.info("a standby is there", { operation: "supervise", standbyPid: child.pid });
    });
    void child.ended.then((ending) => {
      if (this.#standby !== child) return;
      this.#standby = undefined;
      if (this.#isEnding) return;
      this.#standbyFailures += 1;
      log.warn("the standby has ended", {
        operation: "supervise",
        endedPid: child.pid,
        cause: causeOf(ending),
      });
      this.#after(this.#pauseMs(this.#standbyFailures), () => this.#startStandby());
    });
  }

  /** Doubles with every failure, and is drawn from its upper half: servers that fail together do not start together. */
  #pauseMs(failures: number): number {
    if (failures === 0) return 0;
    const most = Math.min(firstPauseMs * 2 ** (failures - 1), longestPauseMs);
    return (most * (1 + this.#parts.random.fraction())) / 2;
  }
}

function causeOf({ code, signal }: Ending): string {
  return signal ?? `exit code ${code}`;
}
