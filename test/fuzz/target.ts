/** What is fuzzed: a doorway of the program, inputs that it takes, and what must hold for every other input. */
import type { SeededRandom } from "../../src/base/seeded-random.ts";

export interface FuzzTarget {
  name: string;
  /** Inputs that the doorway accepts: what mutation starts from. At least one. */
  seeds: readonly Buffer[];
  /** Mutates one input by what the target knows of its structure; else bytes are mutated blindly. */
  mutate?: (input: Buffer, random: SeededRandom, others: readonly Buffer[]) => Buffer;
  /** Makes the checksums of a changed input right again, so that what lies behind them is reached. May change it. */
  mend?: (input: Buffer) => Buffer;
  /**
   * Gives the input to the doorway and throws where a promise is broken. Answers in a word what came of it
   * ("value", "corrupt", "invalid" …), which is counted.
   */
  run: (input: Buffer) => string | Promise<string>;
  /** Bytes that one case may allocate besides 64 times its input. Default 8 MiB. */
  memoryBytes?: number;
  /** Ends what the target has started. */
  close?: () => Promise<void>;
}

/** Made when it is first needed, because some start servers. */
export type MakeTarget = () => FuzzTarget | Promise<FuzzTarget>;
