/**
 * Runs write-load.ts as a process of its own and watches its acknowledged flushes: a server that is away makes them
 * wait in the kernel, and the longest time between two is how long the users of the filesystem were held up.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { LANES } from "./write-load.ts";

const programPath = fileURLToPath(new URL("write-load.ts", import.meta.url));

export class WriteLoad {
  /** Records of each lane that were written and flushed. */
  readonly totals: number[] = Array.from({ length: LANES }, () => 0);
  flushes = 0;
  /** Longest time between two acknowledged flushes of any lane. */
  longestStallMs = 0;
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;
  #stderr = "";
  #lastMs: number | undefined;
  #isDone = false;
  #waiters: (() => void)[] = [];

  constructor(directory: string) {
    this.#child = spawn(process.execPath, [programPath, directory], {
      env: { PATH: process.env["PATH"] ?? "" },
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    this.#child.stderr?.on("data", (bytes: Buffer) => (this.#stderr += bytes.toString()));
    if (this.#child.stdout === null) throw new Error("the write load has no standard output");
    createInterface(this.#child.stdout).on("line", (line) => this.#line(line));
    this.#ended = once(this.#child, "close").then(() => this.#wake());
  }

  /** Resolves after so many more flushes; throws where the load ends before. */
  async untilFlushed(more: number): Promise<void> {
    const wanted = this.flushes + more;
    while (this.flushes < wanted) {
      if (this.#hasEnded()) throw new Error(`the write load ended: ${this.#stderr}`);
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  /** Lets it finish what it began. Throws where any of its calls failed. */
  async finish(): Promise<void> {
    this.#child.stdin?.end();
    await this.#ended;
    if (!this.#isDone) throw new Error(`the write load failed: ${this.#stderr}`);
  }

  kill(): void {
    if (!this.#hasEnded()) this.#child.kill("SIGKILL");
  }

  #line(line: string): void {
    const [word, lane, records] = line.split(" ");
    if (word === "done") this.#isDone = true;
    if (word !== "flushed") return;
    const nowMs = performance.now();
    if (this.#lastMs !== undefined) this.longestStallMs = Math.max(this.longestStallMs, nowMs - this.#lastMs);
    this.#lastMs = nowMs;
    this.totals[Number(lane)] = Number(records);
    this.flushes += 1;
    this.#wake();
  }

  #hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}
