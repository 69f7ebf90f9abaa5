/** Randomness as a dependency: the system's is cryptographic, the simulator's is seeded. */
export interface Random {
  /** `length` random bytes, as a Buffer of its own. */
  bytes(length: number): Buffer;
  /** A number in [0, 1). */
  fraction(): number;
}
