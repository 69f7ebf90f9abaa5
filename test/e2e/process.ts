/**
 * One process of the driver in an end-to-end test: `node src/cli/main.ts <command> …`, started, killed and started again,
 * with what it logged over all its lives. It ends with the test that started it.
 * A server with --standby is several processes, which live and die together here but for `killServing`.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const mainPath = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

export type CommandName = "controller" | "server" | "node";
export type LogLine = Record<string, unknown> & { message: string };

/** What each command says when it serves. */
const readyMessages: Readonly<Record<CommandName, string>> = {
  controller: "the controller is ready",
  server: "the server is ready",
  node: "the node service is ready",
};

export class DriverProcess {
  readonly command: CommandName;
  /** Replaced between two lives, where a test wants other flags. */
  flags: readonly string[];
  /** Every line of every life, in order. */
  readonly lines: LogLine[] = [];
  stderr = "";
  readonly #environment: Readonly<Record<string, string>>;
  #child: ChildProcess | undefined;
  #ended: Promise<unknown> = Promise.resolve();
  #launchedAt = 0;
  /** Where the present life begins in `lines`. */
  #bornAt = 0;
  /** Its last words may come after its death. */
  #killedPid: number | undefined;
  #waiters: (() => void)[] = [];

  constructor(command: CommandName, flags: readonly string[], environment: Readonly<Record<string, string>> = {}) {
    this.command = command;
    this.flags = flags;
    this.#environment = environment;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Of the process that serves: the one that was started or, with --standby, a child of it. */
  get servingPid(): number | undefined {
    const line = this.lines.slice(this.#launchedAt).findLast(({ servingPid }) => servingPid !== undefined);
    return line === undefined ? this.pid : Number(line["servingPid"]);
  }

  get isRunning(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Starts the process; resolves once it serves. */
  async start(): Promise<void> {
    this.launch();
    await this.logged(readyMessages[this.command]);
  }

  /** Starts the process and does not wait. */
  launch(): void {
    const child = spawn(process.execPath, [mainPath, this.command, ...this.flags], {
      env: { ...inherited(), ...this.#environment },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#child = child;
    this.#launchedAt = this.lines.length;
    this.#bornAt = this.lines.length;
    this.stderr = "";
    let rest = "";
    child.stdout.on("data", (bytes: Buffer) => {
      const parts = (rest + bytes.toString()).split("\n");
      rest = parts.pop() ?? "";
      for (const line of parts) this.lines.push(JSON.parse(line) as LogLine);
      this.#wake();
    });
    child.stderr.on("data", (bytes: Buffer) => (this.stderr += bytes.toString()));
    this.#ended = once(child, "close").then(() => this.#wake());
  }

  /** Ends the process by the signal; resolves once it has gone. Nothing where it has gone already. */
  async stop(signal: NodeJS.Signals): Promise<void> {
    const family = signal === "SIGKILL" ? this.#children() : [];
    if (this.isRunning) this.#child?.kill(signal);
    for (const pid of family) killIfThere(pid);
    await this.#ended;
  }

  /**
   * The death of the process that serves, and of it alone: what is logged from now on is of a new life. With --standby
   * another process goes on by itself.
   */
  killServing(): void {
    const pid = this.servingPid;
    if (pid === undefined) throw new Error(`no ${this.command} serves`);
    process.kill(pid, "SIGKILL");
    this.#killedPid = pid;
    this.#bornAt = this.lines.length;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  async restart(signal: NodeJS.Signals): Promise<void> {
    await this.stop(signal);
    await this.start();
  }

  /** Resolves with the exit code once the process has ended by itself. */
  async end(): Promise<number | null> {
    await this.#ended;
    return this.#child?.exitCode ?? null;
  }

  /** The first line of this life with the message (and what `matches` asks for); rejects where the life ends without. */
  async logged(message: string, matches: (line: LogLine) => boolean = () => true): Promise<LogLine> {
    const bornAt = this.#bornAt;
    for (let from = bornAt; ;) {
      for (; from < this.lines.length; from += 1) {
        const line = this.lines[from];
        if (line["pid"] !== undefined && line["pid"] === this.#killedPid) continue;
        if (line.message === message && matches(line)) return line;
      }
      if (!this.isRunning) throw new Error(`the ${this.command} ended without "${message}": ${this.tail()}`);
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  /** The end of the log, for messages of failed tests. */
  tail(): string {
    return `${this.stderr}\n${this.lines
      .slice(-12)
      .map((line) => JSON.stringify(line))
      .join("\n")}`;
  }

  /** Processes that this one has started. */
  #children(): number[] {
    const processes = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
    return processes.map(Number).filter((pid) => parentOf(pid) === this.pid);
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const resume of waiters) resume();
  }
}

function parentOf(pid: number): number | undefined {
  try {
    return Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
  } catch {
    return undefined;
  }
}

function killIfThere(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself: its parent is gone.
  }
}

function inherited(): Record<string, string> {
  const { PATH = "", NODE_COMPILE_CACHE } = process.env;
  return NODE_COMPILE_CACHE === undefined ? { PATH } : { PATH, NODE_COMPILE_CACHE };
}
