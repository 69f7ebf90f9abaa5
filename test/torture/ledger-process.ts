/**
 * Keeps a ledger (ledger.ts) by a process of its own on a file that is there already, so that what waits for the disk
 * is that process and nobody else; may be killed and begun again, and compares what the file holds with what was
 * acknowledged.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, open } from "node:fs/promises";
import { dirname } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { monotonicMs } from "./figures.ts";
import { ledgerFaults, momentOf, readSlots, recordBytes } from "./ledger.ts";

const programPath = fileURLToPath(new URL("ledger.ts", import.meta.url));

export class LedgerProcess {
  readonly file: string;
  readonly slots: number;
  /** The last record that was acknowledged, 0 before the first. */
  acknowledged = 0;
  /** No record above this one was ever begun. */
  #attempted = 0;
  #child: ChildProcess | undefined;
  #ended: Promise<unknown> = Promise.resolve();
  #taken = 0;
  #stderr = "";
  #isDone = false;
  #bornMs = 0;
  /** When each wait began and how long it was, since the last call of `takeWaits`. */
  #waits: { startMs: number; ms: number }[] = [];
  #waiters: (() => void)[] = [];

  constructor(file: string, slots: number = 256) {
    this.file = file;
    this.slots = slots;
  }

  /** Makes the file at its full size, durably. */
  async prepare(): Promise<void> {
    await mkdir(dirname(this.file), { recursive: true });
    const file = await open(this.file, "wx");
    for (let slot = 0; slot < this.slots; slot += 1) await file.write(Buffer.alloc(recordBytes));
    await file.sync();
    await file.close();
    const directory = await open(dirname(this.file), "r");
    await directory.sync();
    await directory.close();
  }

  get isRunning(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  start(): void {
    // The record that a kill left in doubt is written again: it has the same bytes.
    const first = this.acknowledged + 1;
    const child = spawn(process.execPath, [programPath, this.file, String(this.slots), String(first)], {
      env: programEnvironment(),
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.#child = child;
    this.#isDone = false;
    this.#stderr = "";
    this.#bornMs = monotonicMs();
    this.#attempted = first;
    child.stderr.on("data", (bytes: Buffer) => (this.#stderr += bytes.toString()));
    child.stdin.on("error", () => {});
    createInterface(child.stdout).on("line", (line) => this.#line(line));
    this.#ended = once(child, "close").then(() => this.#wake());
  }

  /** Lets it finish the record that it has begun. Rejects where any of its calls has failed. */
  async stop(): Promise<void> {
    this.#child?.stdin?.end();
    await this.#ended;
    if (!this.#isDone) throw new Error(`the ledger ${this.file} failed: ${this.#stderr}`);
  }

  /** Ends it as a crash would. A process that waits in the kernel is gone only when the kernel lets it go. */
  kill(): Promise<unknown> {
    this.#child?.kill("SIGKILL");
    return this.#ended;
  }

  /** Resolves once a record that was begun after now is acknowledged; rejects where the process ends before. */
  async untilAcknowledged(records: number = 1): Promise<void> {
    // The next line may be of a record that was begun before.
    for (let left = records + 1; left > 0; left -= 1) {
      const before = this.acknowledged;
      while (this.acknowledged === before) {
        if (!this.isRunning) throw new Error(`the ledger ${this.file} ended: ${this.#stderr}`);
        await new Promise<void>((resolve) => this.#waiters.push(resolve));
      }
    }
  }

  /** The longest wait that was not over at `fromMs`; earlier ones are forgotten. */
  longestWaitSince(fromMs: number): number {
    const waits = this.#waits.filter(({ startMs, ms }) => startMs + ms >= fromMs);
    this.#waits = [];
    return Math.max(0, ...waits.map(({ ms }) => ms));
  }

  /** Records acknowledged since the last call. */
  takeCount(): number {
    const count = this.acknowledged - this.#taken;
    this.#taken = this.acknowledged;
    return count;
  }

  /** Throws where the file lacks what was acknowledged. Nothing may be writing. */
  async mustHold(): Promise<void> {
    const faults = ledgerFaults(await readSlots(this.file, this.slots), {
      acknowledged: this.acknowledged,
      attempted: this.#attempted,
    });
    if (faults.length > 0) {
      throw new Error(`acknowledged records of ${this.file} are lost:\n${faults.slice(0, 10).join("\n")}`);
    }
  }

  /** The same of a bare device, where besides all slots must be of one moment. */
  async mustHoldMoment(): Promise<void> {
    await this.mustHold();
    if ((await this.moment()) === undefined)
      throw new Error(`the slots of ${this.file} were never all like this at once`);
  }

  /** The record after which all slots were as they are; undefined where they never were. */
  async moment(): Promise<number | undefined> {
    return momentOf(await readSlots(this.file, this.slots));
  }

  #line(line: string): void {
    if (line === "done") {
      this.#isDone = true;
      // It was not begun: the loop ended before.
      this.#attempted = this.acknowledged;
      return;
    }
    const [number, ms] = line.split(" ").map(Number);
    this.acknowledged = number;
    this.#attempted = number + 1;
    this.#waits.push({ startMs: Math.max(this.#bornMs, monotonicMs() - ms), ms });
    this.#wake();
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}

/** What a program of ours needs of this process's environment. */
export function programEnvironment(): Record<string, string> {
  const { PATH = "", NODE_COMPILE_CACHE, TMPDIR } = process.env;
  const set = { PATH, NODE_COMPILE_CACHE, TMPDIR };
  return Object.fromEntries(
    Object.entries(set).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
  );
}
