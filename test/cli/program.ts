/** Runs the program as a user would: as a process, in a directory of its own that goes with it. */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { once } from "node:events";

const mainPath = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

export interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** Runs any program to its end. */
export async function run(
  command: string,
  args: readonly string[],
  environment: Record<string, string> = {},
): Promise<Finished> {
  const child = spawn(command, args, { env: { PATH: process.env.PATH ?? "", ...environment } });
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (bytes: Buffer) => (output.stdout += bytes.toString()));
  child.stderr.on("data", (bytes: Buffer) => (output.stderr += bytes.toString()));
  const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
  return { code, signal, ...output };
}

/** Runs a command of the program to its end. */
export function s3block(args: readonly string[], environment: Record<string, string> = {}): Promise<Finished> {
  return run(process.execPath, [mainPath, ...args], environment);
}

/** A server process and what it logs. */
export class ServerProcess {
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;
  readonly lines: Record<string, unknown>[] = [];
  readonly #waiters: (() => void)[] = [];
  stderr = "";

  constructor(args: readonly string[], environment: Record<string, string> = {}) {
    const env = { PATH: process.env.PATH ?? "", ...environment };
    this.#child = spawn(process.execPath, [mainPath, "server", ...args], { env });
    this.#ended = once(this.#child, "close").then(() => this.#wake());
    let rest = "";
    this.#child.stdout?.on("data", (bytes: Buffer) => {
      const parts = (rest + bytes.toString()).split("\n");
      rest = parts.pop() ?? "";
      for (const line of parts) this.lines.push(JSON.parse(line) as Record<string, unknown>);
      this.#wake();
    });
    this.#child.stderr?.on("data", (bytes: Buffer) => (this.stderr += bytes.toString()));
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** With --standby: the process that serves, by the last word of the supervisor. */
  get servingPid(): number {
    return Number(this.lines.findLast(({ servingPid }) => servingPid !== undefined)?.servingPid);
  }

  /** Resolves with the first line of this message, of one process where it is given; rejects when all end without it. */
  async logged(message: string, by?: number): Promise<Record<string, unknown>> {
    for (;;) {
      const isIt = (line: Record<string, unknown>): boolean =>
        line.message === message && (by === undefined || line.pid === by);
      const line = this.lines.find(isIt);
      if (line !== undefined) return line;
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) {
        throw new Error(`the server ended without "${message}": ${this.stderr}${JSON.stringify(this.lines.slice(-5))}`);
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  /** Sends the signal and answers the exit code, null where the signal killed it. */
  async stop(signal: NodeJS.Signals): Promise<number | null> {
    this.#child.kill(signal);
    await this.#ended;
    return this.#child.exitCode;
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}

/** A directory with a store, state and run directory, and the servers started in it. */
export class Playground {
  readonly directory: string;
  readonly #servers: ServerProcess[] = [];

  private constructor(directory: string) {
    this.directory = directory;
  }

  static async make(): Promise<Playground> {
    return new Playground(await mkdtemp(join(tmpdir(), "s3block-")));
  }

  get storeUrl(): string {
    return `file://${join(this.directory, "store")}`;
  }

  get socketPath(): string {
    return join(this.directory, "nbd.sock");
  }

  get controlSocket(): string {
    return join(this.directory, "run", "control.sock");
  }

  uri(name: string): string {
    return `nbd+unix:///${name}?socket=${this.socketPath}`;
  }

  path(...names: string[]): string {
    return join(this.directory, ...names);
  }

  volume(...args: string[]): Promise<Finished> {
    return s3block(["volume", ...args, "--store", this.storeUrl]);
  }

  serverFlags(state = "state"): string[] {
    return [
      `--store=${this.storeUrl}`,
      `--state-dir=${this.path(state)}`,
      `--run-dir=${this.path("run")}`,
      `--control-socket=${this.controlSocket}`,
      `--listen=unix:${this.socketPath}`,
      "--cache-size=64MiB",
      "--journal-size=256MiB",
      "--export-idle-ms=50",
      "--threads=2",
      "--node-id=node-a",
    ];
  }

  /** Starts a server and resolves when it is ready. */
  async serve(
    flags: readonly string[] = this.serverFlags(),
    environment: Record<string, string> = {},
  ): Promise<ServerProcess> {
    const server = new ServerProcess(flags, environment);
    this.#servers.push(server);
    await server.logged("the server is ready");
    return server;
  }

  read(...names: string[]): Promise<Buffer> {
    return readFile(this.path(...names));
  }

  async remove(): Promise<void> {
    for (const server of this.#servers) await server.stop("SIGKILL");
    await rm(this.directory, { recursive: true, force: true });
  }
}
