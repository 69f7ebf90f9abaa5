/**
 * An application with a database on a volume: it can be started (which recovers the database), tells each commit that
 * was acknowledged, and is killed at any moment. What `start` finds is compared with what was acknowledged before.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { programEnvironment } from "./ledger-process.ts";

/** What an application said that holds acknowledged commits, and where a lost one shows. */
export class CommitRecord {
  readonly name: string;
  acknowledged = 0;
  /** The last commit that was begun. */
  begun = 0;

  constructor(name: string) {
    this.name = name;
  }

  /** Throws where a database that holds commits up to `found` has lost one, or has one that nobody made. */
  mustExplain(found: number): void {
    if (found < this.acknowledged) {
      throw new Error(`${this.name} holds ${found} commits and acknowledged ${this.acknowledged}`);
    }
    if (found > Math.max(this.begun, this.acknowledged)) {
      throw new Error(`${this.name} holds ${found} commits and only ${this.begun} were begun`);
    }
    this.acknowledged = found;
  }
}

export interface Application {
  readonly record: CommitRecord;
  /** Starts it on what is there and resolves once it has recovered, been checked and committed again. */
  start(): Promise<void>;
  /** Rejects where it does not come so far. */
  untilCommitted(commits: number): Promise<void>;
  /** SIGKILL to all its processes; resolves once they are gone. */
  kill(): Promise<void>;
}

/** A process that tells of commits line by line, and what it said. */
export class CommitTeller {
  readonly #record: CommitRecord;
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;
  #isChecked = false;
  #loss: Error | undefined;
  #said = "";
  #waiters: (() => void)[] = [];

  constructor(record: CommitRecord, child: ChildProcess) {
    this.#record = record;
    this.#child = child;
    if (child.stdout === null || child.stderr === null) throw new Error("its output is not to be read");
    child.stdin?.on("error", () => {});
    child.stderr.on("data", (bytes: Buffer) => (this.#said = (this.#said + bytes.toString()).slice(-4000)));
    createInterface(child.stdout).on("line", (line) => this.#line(line));
    this.#ended = once(child, "close").then(() => this.#wake());
  }

  /** Resolves once the application has said what its database holds; rejects where commits are missing there. */
  async untilChecked(): Promise<void> {
    await this.#until(() => this.#isChecked);
    if (this.#loss !== undefined) throw this.#loss;
  }

  async untilCommitted(commits: number): Promise<void> {
    const wanted = this.#record.acknowledged + commits;
    await this.#until(() => this.#record.acknowledged >= wanted);
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }

  async #until(isReached: () => boolean): Promise<void> {
    while (!isReached()) {
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) {
        await this.#ended;
        if (isReached()) return;
        throw new Error(`${this.#record.name} ended by itself: ${this.#said}`);
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  #line(line: string): void {
    const [word, number] = line.split(" ");
    if (word === "holds") this.#check(Number(number));
    else if (word === "begins") this.#record.begun = Number(number);
    else if (word === "commits") this.#record.acknowledged = Number(number);
    this.#wake();
  }

  /** At once: lines of later commits may have come together with this one. */
  #check(found: number): void {
    this.#isChecked = true;
    try {
      this.#record.mustExplain(found);
    } catch (error) {
      this.#loss = error as Error;
    }
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}

export class SqliteApplication implements Application {
  readonly record: CommitRecord;
  readonly #file: string;
  readonly #mode: "wal" | "delete";
  #teller: CommitTeller | undefined;

  constructor(file: string, mode: "wal" | "delete") {
    this.record = new CommitRecord(`SQLite ${file}`);
    this.#file = file;
    this.#mode = mode;
  }

  async start(): Promise<void> {
    const program = fileURLToPath(new URL("sqlite-writer.ts", import.meta.url));
    const child = spawn(process.execPath, ["--no-warnings", program, this.#file, this.#mode], {
      env: programEnvironment(),
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.#teller = new CommitTeller(this.record, child);
    await this.#teller.untilChecked();
    await this.untilCommitted(1);
  }

  async untilCommitted(commits: number): Promise<void> {
    await this.#teller?.untilCommitted(commits);
  }

  async kill(): Promise<void> {
    await this.#teller?.kill();
    this.#teller = undefined;
  }
}
