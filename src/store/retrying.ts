/**
 * Makes a store patient: an "unavailable" request is sent again after a random pause that grows from 100 ms to 5 s
 * (full jitter), until it is answered, the caller's signal aborts, or a limit is reached. A get whose answer is damaged
 * ("corrupt", by the store's own look or the caller's `verify`) is sent three times in all. Nothing else is retried.
 * All requests pass a gate (request-gate.ts), one for reads and one for writes: while the store is away they wait there
 * together instead of each asking again, and a store that asks for fewer requests gets fewer.
 *
 * It also settles what a put achieved. After a lost reply the outcome is unknown until a later attempt decides: where
 * the store says "exists", the identity of what stands there (the first IDENTITY_BYTES) is compared with ours. Ours
 * means that this very put got through: "created". Somebody else's means "exists". A reader that cannot tell keeps
 * asking: the verdict is never guessed. A request with `once` is sent once and never again.
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
import { type Pass, RequestGate, type Verdict } from "./request-gate.ts";
import { TemporaryRefusal } from "./temporary-refusal.ts";

export const FIRST_PAUSE_MS = 100;
export const LONGEST_PAUSE_MS = 5000;

/** So many damaged answers to one get mean that the object itself is damaged. */
const DAMAGED_ANSWERS = 3;

export interface RetryLimits {
  /** Requests sent for one call at most; default unlimited. */
  maxAttempts?: number;
  /** No request is sent again later than this after the call began; default unlimited. */
  deadlineMs?: number;
}

type RequestKind = "put" | "get" | "list" | "delete";
type Standing = { bytes: Buffer; totalBytes: number };

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
  readonly #gates: { readonly reads: RequestGate; readonly writes: RequestGate };

  constructor(inner: ObjectStore, parts: RetryingStoreParts) {
    this.location = inner.location;
    this.#inner = inner;
    this.#parts = parts;
    const log = parts.log.child({ store: inner.location });
    this.#gates = {
      reads: new RequestGate({ ...parts, log, requests: "reads" }),
      writes: new RequestGate({ ...parts, log, requests: "writes" }),
    };
  }

  /** How things stand with the store, for metrics. */
  state(): { isAway: boolean; waitingRequests: number } {
    const { reads, writes } = this.#gates;
    return { isAway: reads.isClosed || writes.isClosed, waitingRequests: reads.waiting + writes.waiting };
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options: RequestOptions = {}): Promise<PutOutcome> {
    for (;;) {
      const outcome = await this.#retry("put", key, options, (sent) => this.#inner.putIfAbsent(key, body, sent));
      if (outcome === "created") return "created";
      const { once: isOnce = false, ...asking } = options;
      const standing = await this.#standing(key, body, asking);
      // Gone again: deleted in between. Only another attempt can tell who is first now.
      if (standing === undefined) {
        if (isOnce) return "exists";
        continue;
      }
      const isOurs = isBodyOf(standing, body);
      return isOurs ? "created" : "exists";
    }
  }

  async get(key: string, options: RequestOptions = {}): Promise<Buffer | undefined> {
    return this.#retry("get", key, options, async (sent) => {
      const bytes = await this.#inner.get(key, sent);
      if (bytes !== undefined) options.verify?.(bytes, bytes.length);
      return bytes;
    });
  }

  async getRange(
    key: string,
    range: ByteRange,
    options: RequestOptions = {},
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    return this.#retry("get", key, options, async (sent) => {
      const answer = await this.#inner.getRange(key, range, sent);
      if (answer !== undefined) options.verify?.(answer.bytes, answer.totalBytes);
      return answer;
    });
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    return this.#retry("list", prefix, options, (sent) => this.#inner.list(prefix, sent));
  }

  async delete(keys: readonly string[], options: RequestOptions = {}): Promise<void> {
    return this.#retry("delete", keys[0] ?? "", options, (sent) => this.#inner.delete(keys, sent));
  }

  /**
   * The identity of what stands under the key. It has no checksum of its own, and decides who was first: where it is not
   * that of `body`, it is read until two answers in a row are the same.
   */
  async #standing(key: string, body: readonly Uint8Array[], options: RequestOptions): Promise<Standing | undefined> {
    let before: Standing | undefined;
    for (;;) {
      const standing = await this.getRange(key, { offset: 0, length: IDENTITY_BYTES }, options);
      if (standing === undefined || isBodyOf(standing, body)) return standing;
      if (before?.totalBytes === standing.totalBytes && before.bytes.equals(standing.bytes)) return standing;
      before = standing;
    }
  }

  /** Ends calls that wait for their next attempt with "unavailable". */
  async close(): Promise<void> {
    this.#closing.abort();
    this.#gates.reads.close();
    this.#gates.writes.close();
    await this.#inner.close();
  }

  async #retry<T, Options extends RequestOptions>(
    what: RequestKind,
    key: string,
    options: Options,
    attempt: (sent: Options) => Promise<T>,
  ): Promise<T> {
    const { clock, log, limits = {} } = this.#parts;
    const gate = this.#gates[what === "get" || what === "list" ? "reads" : "writes"];
    const deadlineMs = clock.monotonicMs() + (limits.deadlineMs ?? Infinity);
    let damaged = 0;
    for (let attempts = 1; ; attempts += 1) {
      const pass = gate.tryEnter() ?? (await gate.enter(options.signal, deadlineMs));
      let error: OperationError;
      try {
        // By hand: AbortSignal.any() costs a weak reference and its finalization for every request.
        if (options.signal?.aborted === true) pass.loseIt();
        options.signal?.addEventListener("abort", pass.loseIt, { once: true });
        const result = await attempt({ ...options, signal: pass.lost });
        gate.leave(pass, "answered");
        if (attempts > 2) log.info("store answers again", { request: what, key, attempts });
        return result;
      } catch (reason) {
        error = this.#leaveFailed(gate, pass, options, reason);
      } finally {
        options.signal?.removeEventListener("abort", pass.loseIt);
      }
      const pauseMs = gate.isClosed || pass.lost.aborted ? 0 : this.#pauseMs(attempts);
      const isLate = clock.monotonicMs() + pauseMs > deadlineMs;
      if (error.kind === "corrupt" && (damaged += 1) === DAMAGED_ANSWERS) throw error;
      if (options.once === true || attempts >= (limits.maxAttempts ?? Infinity) || isLate) throw error;
      if (isPowerOfTwo(attempts) && attempts > 1) {
        log.warn("store request is retried", { request: what, key, attempts, error: error.message });
      }
      // Where the gate has closed, it is the gate that says when it goes on.
      if (pauseMs > 0) await this.#pause(pauseMs, options, error);
    }
  }

  /** Gives the pass back; throws `reason` where it is nothing that another attempt could mend. */
  #leaveFailed(gate: RequestGate, pass: Pass, options: RequestOptions, reason: unknown): OperationError {
    if (!isKind(reason, "unavailable")) {
      // An answer that says no, or is damaged, is an answer as well: the store is there.
      gate.leave(pass, "answered");
      if (!isKind(reason, "corrupt") || this.#isStopped(options)) throw reason;
      return reason;
    }
    if (this.#isStopped(options)) {
      gate.leave(pass, "given-up");
      throw reason;
    }
    if (pass.lost.aborted) gate.leave(pass, "given-up");
    else gate.leave(pass, verdictOf(reason), reason);
    return reason;
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

function isBodyOf(standing: Standing, body: readonly Uint8Array[]): boolean {
  return standing.totalBytes === bodyLength(body) && standing.bytes.equals(bodyStart(body, IDENTITY_BYTES));
}

function verdictOf(error: OperationError): Verdict {
  if (!(error instanceof TemporaryRefusal)) return "failed";
  return error.reason === "slow-down" ? "slow-down" : "answered";
}

function isPowerOfTwo(count: number): boolean {
  return Number.isInteger(Math.log2(count));
}
