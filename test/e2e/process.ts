/**
 * One process of the driver in an end-to-end test: `node src/cli/main.ts <command> …`, started, killed and started again,
 * with what it logged over all its lives. It ends with the test that started it.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
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
  #bornAt = 0;
  #waiters: (() => void)[] = [];

  constructor(command: CommandName, flags: readonly string[], environment: Readonly<Record<string, string>> = {}) {
    this.command = command;
    this.flags = flags;
    this.#environment = environment;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
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
    if (this.isRunning) this.#child?.kill(signal);
    await this.#ended;
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

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const resume of waiters) resume();
  }
}

function inherited(): Record<string, string> {
  const { PATH = "", NODE_COMPILE_CACHE } = process.env;
  return NODE_COMPILE_CACHE === undefined ? { PATH } : { PATH, NODE_COMPILE_CACHE };
}
