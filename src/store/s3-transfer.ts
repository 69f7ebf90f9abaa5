/**
 * Bodies on their way: parts of a put handed to the connection without being copied, bodies of a get gathered into
 * one buffer of the announced size, and the watch that gives a request up when nothing moves any more.
 * A body that is shorter or longer than announced never leaves this file.
 */
import { Readable } from "node:stream";
import type { Clock, Timer } from "../base/clock.ts";
import { OperationError } from "../base/errors.ts";

/** Steps in which a body is handed to the connection: how fine the watch sees progress. */
const STEP_BYTES = 512 * 1024;

/** The slowest rate at which a body may still move, on the whole: below it the connection is as good as dead. */
const SLOWEST_BYTES_PER_MS = 64;

/**
 * Watches one request: `signal` aborts when the caller gives up, when nothing moved for `stallMs`, or when the whole
 * took longer than `stallMs` plus what its bytes may take at the slowest rate. end() must follow, always.
 */
export class TransferWatch {
  readonly #controller = new AbortController();
  readonly #clock: Clock;
  readonly #stallMs: number;
  readonly #outer: AbortSignal | undefined;
  readonly #startedMs: number;
  #movedMs: number;
  #expectedBytes = 0;
  #timer: Timer | undefined;
  #ranOut = false;

  constructor(clock: Clock, stallMs: number, outer: AbortSignal | undefined) {
    this.#clock = clock;
    this.#stallMs = stallMs;
    this.#outer = outer;
    this.#startedMs = clock.monotonicMs();
    this.#movedMs = this.#startedMs;
    if (outer?.aborted === true) this.#controller.abort();
    outer?.addEventListener("abort", this.#giveUp, { once: true });
    this.#timer = clock.after(stallMs, this.#look);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** True where the watch, not the caller, gave the request up. */
  get ranOut(): boolean {
    return this.#ranOut;
  }

  /** True where the caller gave the request up. */
  get gaveUp(): boolean {
    return this.#outer?.aborted === true && !this.#ranOut;
  }

  get elapsedMs(): number {
    return this.#clock.monotonicMs() - this.#startedMs;
  }

  /** Bytes that will move in this request, either way. */
  expect(bytes: number): void {
    this.#expectedBytes += bytes;
  }

  /** Something moved. */
  moved(): void {
    this.#movedMs = this.#clock.monotonicMs();
  }

  /** Stops watching; the connection stays. */
  end(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#outer?.removeEventListener("abort", this.#giveUp);
  }

  /** Closes the connection, on which something may still be on its way. */
  tearDown(): void {
    this.#controller.abort();
  }

  readonly #giveUp = (): void => {
    this.#controller.abort();
  };

  readonly #look = (): void => {
    const nowMs = this.#clock.monotonicMs();
    const deadlineMs = this.#startedMs + this.#stallMs + this.#expectedBytes / SLOWEST_BYTES_PER_MS;
    const dueMs = Math.min(this.#movedMs + this.#stallMs, deadlineMs);
    if (nowMs >= dueMs) {
      this.#ranOut = true;
      this.#controller.abort();
      return;
    }
    this.#timer = this.#clock.after(Math.max(1, dueMs - nowMs), this.#look);
  };
}

/** The parts as a stream of views of them: nothing is copied. */
export class PartsStream extends Readable {
  readonly #parts: readonly Uint8Array[];
  readonly #onProgress: () => void;
  #index = 0;
  #offset = 0;

  constructor(parts: readonly Uint8Array[], onProgress: () => void) {
    super({ highWaterMark: STEP_BYTES });
    this.#parts = parts;
    this.#onProgress = onProgress;
  }

  override _read(): void {
    this.#onProgress();
    for (;;) {
      if (this.#index === this.#parts.length) {
        this.push(null);
        return;
      }
      const part = this.#parts[this.#index];
      const end = Math.min(this.#offset + STEP_BYTES, part.length);
      const step = Buffer.from(part.buffer, part.byteOffset + this.#offset, end - this.#offset);
      this.#offset = end;
      if (end === part.length) {
        this.#index += 1;
        this.#offset = 0;
      }
      if (step.length > 0) {
        this.push(step);
        return;
      }
    }
  }
}

/** Longer bodies are no objects of ours: a segment, the largest, has 64 MiB at most. */
const MAX_BODY_BYTES = 128 * 1024 * 1024;

/**
 * All bytes of `source`, which announced `length` of them (undefined: it did not say, then its own end counts).
 * Rejects with "corrupt" where more or fewer come, or more than any object of ours has, before memory is taken for
 * them; and with the connection's error where it breaks.
 */
export function gather(source: Readable, length: number | undefined, onProgress: () => void): Promise<Buffer> {
  if (length !== undefined && length > MAX_BODY_BYTES) return Promise.reject(tooLong(length));
  return new Promise((resolve, reject) => {
    const target = length === undefined ? undefined : Buffer.allocUnsafeSlow(length);
    const chunks: Buffer[] = [];
    let received = 0;
    source.on("data", (chunk: Buffer) => {
      onProgress();
      if (target === undefined) chunks.push(chunk);
      else if (received + chunk.length <= target.length) chunk.copy(target, received);
      received += chunk.length;
      if (received > MAX_BODY_BYTES) source.destroy(tooLong(received));
    });
    source.on("error", reject);
    source.on("close", () => reject(Object.assign(new Error("body broke off"), { code: "ECONNRESET" })));
    source.on("end", () => {
      if (target === undefined) resolve(Buffer.concat(chunks));
      else if (received === target.length) resolve(target);
      else {
        reject(
          new OperationError("corrupt", "the store sent a body of another length than it announced", {
            context: { announcedBytes: target.length, receivedBytes: received },
          }),
        );
      }
    });
  });
}

function tooLong(bytes: number): OperationError {
  return new OperationError("corrupt", "the store sent a longer body than any object has", { context: { bytes } });
}
