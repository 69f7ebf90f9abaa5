/**
 * The fuzzing loop: every case is a pure function of seed, case number and corpus. A tenth of the cases are arbitrary
 * bytes, the others are mutated from the corpus, half of them with their checksums mended. Inputs that reach blocks of
 * the source which none before has reached join the corpus.
 *
 * A case fails where the target throws, where it allocates more than its input deserves, or where it never ends.
 * Failure messages hold the input, so that one case can be run again by itself (main.ts, --input).
 */
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { Coverage } from "./coverage.ts";
import { arbitrary, mutated } from "./mutation.ts";
import type { FuzzTarget } from "./target.ts";
import { Watchdog } from "./watchdog.ts";

/** Coverage is asked for once for so many cases: the answer costs as much as a few of them. */
const BATCH = 32;
const MEMORY_BYTES_PER_INPUT_BYTE = 64;
const DEFAULT_MEMORY_BYTES = 8 * 1024 * 1024;
const CORPUS_LIMIT = 512;
/** A longer input is not printed: seed and number of cases bring it back. */
const SHOWN_BYTES = 3072;

export interface FuzzOptions {
  seed: number;
  cases: number;
  /** Let coverage guide: slower by a half, and worth it from some ten thousand cases on. */
  guided: boolean;
}

export interface FuzzReport {
  cases: number;
  /** How many cases ended with which word of the target. */
  outcomes: Record<string, number>;
  corpus: number;
  /** Blocks of the sources that were reached; 0 where it was not guided. */
  blocks: number;
}

export async function fuzz(target: FuzzTarget, options: FuzzOptions): Promise<FuzzReport> {
  const run = new FuzzRun(target, options);
  try {
    return await run.finish();
  } finally {
    await run.stop();
  }
}

class FuzzRun {
  readonly #target: FuzzTarget;
  readonly #options: FuzzOptions;
  readonly #corpus: Buffer[];
  readonly #coverage: Coverage | undefined;
  readonly #watchdog: Watchdog;
  readonly #outcomes = new Map<string, number>();
  readonly #reached = new Set<string>();

  constructor(target: FuzzTarget, options: FuzzOptions) {
    this.#target = target;
    this.#options = options;
    this.#corpus = [...target.seeds];
    this.#coverage = options.guided ? new Coverage() : undefined;
    this.#watchdog = new Watchdog(`fuzz target=${target.name} seed=${options.seed}`);
  }

  async finish(): Promise<FuzzReport> {
    const { cases } = this.#options;
    for (const [index, input] of this.#target.seeds.entries()) await this.#run(input, -1 - index);
    this.#news();
    for (let first = 0; first < cases; first += BATCH) {
      const inputs: Buffer[] = [];
      for (let number = first; number < Math.min(cases, first + BATCH); number += 1) {
        const input = this.#input(number);
        await this.#run(input, number);
        inputs.push(input);
      }
      const news = this.#news();
      if (news.size > 0) await this.#adopt(inputs, news);
    }
    const outcomes = Object.fromEntries(this.#outcomes);
    return { cases, outcomes, corpus: this.#corpus.length, blocks: this.#reached.size };
  }

  async stop(): Promise<void> {
    this.#coverage?.close();
    await this.#watchdog.stop();
  }

  #input(number: number): Buffer {
    const random = new SeededRandom(Math.imul(this.#options.seed, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b));
    if (random.below(10) === 0) return arbitrary(random);
    // The newest inputs are the ones that were mutated least.
    const recent = random.below(2) === 0 ? Math.min(this.#corpus.length, 16) : this.#corpus.length;
    const base = this.#corpus[this.#corpus.length - 1 - random.below(recent)];
    const { mutate, mend } = this.#target;
    const input = (mutate ?? mutated)(base, random, this.#corpus);
    return mend !== undefined && random.below(2) === 0 ? mend(Buffer.from(input)) : input;
  }

  async #run(input: Buffer, number: number): Promise<void> {
    this.#watchdog.beat(number);
    const before = heldBytes();
    try {
      const result = this.#target.run(input);
      const outcome = typeof result === "string" ? result : await result;
      const { memoryBytes = DEFAULT_MEMORY_BYTES } = this.#target;
      const taken = heldBytes() - before;
      if (taken > memoryBytes + input.length * MEMORY_BYTES_PER_INPUT_BYTE) {
        throw new Error(`${taken} bytes were allocated for an input of ${input.length}`);
      }
      this.#outcomes.set(outcome, (this.#outcomes.get(outcome) ?? 0) + 1);
    } catch (cause) {
      const text = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
      const where = `target=${this.#target.name} seed=${this.#options.seed} case=${number}`;
      const shown = input.length <= SHOWN_BYTES ? input.toString("base64") : `(${input.length} bytes: repeat by seed)`;
      throw new Error(`${where} input=${shown}\n${text}`);
    }
  }

  /** Blocks reached since the last look that no input had reached before. */
  #news(): Set<string> {
    const news = this.#coverage?.take() ?? new Set<string>();
    for (const block of news) if (this.#reached.has(block)) news.delete(block);
    for (const block of news) this.#reached.add(block);
    return news;
  }

  /** Runs a batch again, one by one, and keeps the first input that reaches each of `news`. */
  async #adopt(inputs: readonly Buffer[], news: Set<string>): Promise<void> {
    for (const input of inputs) {
      if (news.size === 0 || this.#corpus.length >= CORPUS_LIMIT) return;
      await this.#target.run(input);
      const left = news.size;
      for (const block of this.#coverage?.take() ?? []) news.delete(block);
      if (news.size < left) this.#corpus.push(input);
    }
  }
}

/** Memory that the process holds, of every kind that a decoder can allocate. */
function heldBytes(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}
