/**
 * Makes a store patient: an "unavailable" request is sent again after a random pause that grows from 100 ms to 5 s
 * (full jitter), until it is answered, the caller's signal aborts, or a limit is reached. Nothing else is retried.
 *
 * It also settles what a put achieved. After a lost reply the outcome is unknown until a later attempt decides: where
 * the store says "exists", the identity of what stands there (the first IDENTITY_BYTES) is compared with ours. Ours
 * means that this very put got through: "created". Somebody else's means "exists". A reader that cannot tell keeps
 * asking: the verdict is never guessed.
 */
import type { Clock } from "../base/clock.ts";
import { isKind, type OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import { bodyLength, bodyStart } from "./body.ts";
import {
  type ByteRange,
  IDENTITY_BYTES,
  type ListOptions,
  type ListPage,
  type ObjectStore,
  type PutOutcome,
  type RequestOptions,
} from "./object-store.ts";

export const FIRST_PAUSE_MS = 100;
export const LONGEST_PAUSE_MS = 5000;

export interface RetryLimits {
  /** Requests sent for one call at most; default unlimited. */
  maxAttempts?: number;
  /** No request is sent again later than this after the call began; default unlimited. */
  deadlineMs?: number;
}

export interface RetryingStoreParts {
  clock: Clock;
  random: Random;
  log: Log;
  limits?: RetryLimits;
}

export class RetryingStore implements ObjectStore {
  readonly location: string;
  readonly #inner: ObjectStore;
  readonly #parts: RetryingStoreParts;
  readonly #closing = new AbortController();

  constructor(inner: ObjectStore, parts: RetryingStoreParts) {
    this.location = inner.location;
    this.#inner = inner;
    this.#parts = parts;
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options: RequestOptions = {}): Promise<PutOutcome> {
    for (;;) {
      const outcome = await this.#retry("put", key, options, () => this.#inner.putIfAbsent(key, body, options));
      if (outcome === "created") return "created";
      const standing = await this.getRange(key, { offset: 0, length: IDENTITY_BYTES }, options);
      // Gone again: deleted in between. Only another attempt can tell who is first now.
      if (standing === undefined) continue;
      const isOurs = standing.totalBytes === bodyLength(body) && standing.bytes.equals(bodyStart(body, IDENTITY_BYTES));
      return isOurs ? "created" : "exists";
    }
  }

  async get(key: string, options: RequestOptions = {}): Promise<Buffer | undefined> {
    return this.#retry("get", key, options, () => this.#inner.get(key, options));
  }

  async getRange(
    key: string,
    range: ByteRange,
    options: RequestOptions = {},
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    return this.#retry("get", key, options, () => this.#inner.getRange(key, range, options));
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    return this.#retry("list", prefix, options, () => this.#inner.list(prefix, options));
  }

  async delete(keys: readonly string[], options: RequestOptions = {}): Promise<void> {
    return this.#retry("delete", keys[0] ?? "", options, () => this.#inner.delete(keys, options));
  }

  /** Ends calls that wait for their next attempt with "unavailable". */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#inner.close();
  }

  async #retry<T>(what: string, key: string, options: RequestOptions, attempt: () => Promise<T>): Promise<T> {
    const { clock, log, limits = {} } = this.#parts;
    const startedMs = clock.monotonicMs();
    for (let attempts = 1; ; attempts += 1) {
      try {
        const result = await attempt();
        if (attempts > 2) log.info("store answers again", { request: what, key, attempts });
        return result;
      } catch (error) {
        if (!isKind(error, "unavailable") || this.#isStopped(options)) throw error;
        const pauseMs = this.#pauseMs(attempts);
        const isLate = clock.monotonicMs() - startedMs + pauseMs > (limits.deadlineMs ?? Infinity);
        if (attempts >= (limits.maxAttempts ?? Infinity) || isLate) throw error;
        if (isPowerOfTwo(attempts) && attempts > 1) {
          log.warn("store request is retried", { request: what, key, attempts, error: error.message });
        }
        await this.#pause(pauseMs, options, error);
      }
    }
  }

  #isStopped(options: RequestOptions): boolean {
    return options.signal?.aborted === true || this.#closing.signal.aborted;
  }

  #pauseMs(attempts: number): number {
    const ceilingMs = Math.min(FIRST_PAUSE_MS * 2 ** (attempts - 1), LONGEST_PAUSE_MS);
    return this.#parts.random.fraction() * ceilingMs;
  }

  async #pause(pauseMs: number, options: RequestOptions, reason: OperationError): Promise<void> {
    const closing = this.#closing.signal;
    const signal = options.signal === undefined ? closing : AbortSignal.any([closing, options.signal]);
    try {
      await this.#parts.clock.sleep(pauseMs, signal);
    } catch {
      throw reason;
    }
  }
}

function isPowerOfTwo(count: number): boolean {
  return Number.isInteger(Math.log2(count));
}
