/**
 * The trace of a run: its last lines for people, and a checksum over all of them: two runs of one seed must have the
 * same one.
 */
import { crc32 } from "node:zlib";

const KEPT_LINES = 1000;
/** Text that is put into the checksum at a time. */
const PIECE_LENGTH = 16_384;

export class Trace {
  #hash = 0;
  #piece = "";
  lines = 0;
  readonly #kept: string[] = [];
  readonly #nowMs: () => number;

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  add(line: string): void {
    const text = `${this.#nowMs().toFixed(2)} ${line}`;
    this.#piece += text;
    if (this.#piece.length > PIECE_LENGTH) this.#takePiece();
    this.lines += 1;
    this.#kept.push(text);
    if (this.#kept.length > 2 * KEPT_LINES) this.#kept.splice(0, KEPT_LINES);
  }

  get hash(): number {
    this.#takePiece();
    return this.#hash;
  }

  /** The last lines, oldest first. */
  tail(count = KEPT_LINES): string[] {
    return this.#kept.slice(-count);
  }

  #takePiece(): void {
    this.#hash = crc32(this.#piece, this.#hash);
    this.#piece = "";
  }
}
