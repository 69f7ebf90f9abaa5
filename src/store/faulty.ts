/**
 * A store that goes wrong on purpose, for tests and the simulator: each request asks a plan which fault it meets.
 * Faults are those a real store shows, and only those: they break no promise of object-store.ts, except "rot", which
 * stands for damage that only the checksums of our own formats can find. What happened is counted, so that a test can
 * show that its faults took place.
 */
import type { Clock } from "../base/clock.ts";
import { OperationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { ByteRange, ListOptions, ListPage, ObjectStore, PutOutcome, RequestOptions } from "./object-store.ts";

export type StoreFault =
  /** Fails and does nothing: 503, refused connection, 409 on a conditional put. */
  | "refused"
  /** Takes effect, and the reply is lost. */
  | "lost-reply"
  /** The caller is told of a failure at once; the request takes effect `delayMs` later. Puts and deletes alone. */
  | "late"
  /** The body breaks off, which is found: "corrupt". Gets alone. */
  | "short-body"
  /** One bit of the body is flipped, and nobody says so. Gets alone. */
  | "rot";

export interface PlannedFault {
  fault?: StoreFault;
  /** The request waits this long before it is sent (or, for "late", takes effect). */
  delayMs?: number;
}

export interface PlannedRequest {
  kind: "put" | "get" | "list" | "delete";
  key: string;
}

/** Decides about each request as it comes; undefined lets it pass. */
export type FaultPlan = (request: PlannedRequest) => PlannedFault | undefined;

/** Chances of each fault, 0 to 1 together, and the longest delay; every request is drawn anew. */
export interface FaultRates extends Partial<Record<StoreFault, number>> {
  delayMs?: number;
}

/** A plan that draws from `random`: the same seed gives the same faults for the same requests. */
export function randomFaults(random: Random, rates: FaultRates): FaultPlan {
  return ({ kind }) => {
    const delayMs = rates.delayMs === undefined ? 0 : random.fraction() * rates.delayMs;
    let draw = random.fraction();
    for (const fault of ["refused", "lost-reply", "late", "short-body", "rot"] as const) {
      draw -= rates[fault] ?? 0;
      if (draw < 0) return fits(fault, kind) ? { fault, delayMs } : { delayMs };
    }
    return { delayMs };
  };
}

/** A plan that lets the faults happen in this order, one a request of `kind`, and then nothing more. */
export function listedFaults(kind: PlannedRequest["kind"], faults: readonly StoreFault[]): FaultPlan {
  const left = [...faults];
  return (request) => {
    const fault = request.kind === kind ? left.shift() : undefined;
    return fault === undefined ? undefined : { fault };
  };
}

function fits(fault: StoreFault, kind: PlannedRequest["kind"]): boolean {
  if (fault === "late") return kind === "put" || kind === "delete";
  if (fault === "short-body" || fault === "rot") return kind === "get";
  return true;
}

export class FaultyStore implements ObjectStore {
  readonly location: string;
  /** How often each fault happened. */
  readonly counts: Record<StoreFault, number> = { refused: 0, "lost-reply": 0, late: 0, "short-body": 0, rot: 0 };
  readonly #inner: ObjectStore;
  readonly #plan: FaultPlan;
  readonly #clock: Clock;
  readonly #random: Random;

  constructor(inner: ObjectStore, plan: FaultPlan, parts: { clock: Clock; random: Random }) {
    this.location = inner.location;
    this.#inner = inner;
    this.#plan = plan;
    this.#clock = parts.clock;
    this.#random = parts.random;
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options: RequestOptions = {}): Promise<PutOutcome> {
    // The body is the caller's again as soon as the call has failed, and a late put needs it then.
    const kept = (): readonly Uint8Array[] => [Buffer.concat(body)];
    return this.#meet({ kind: "put", key }, options, (isLate) => {
      const sent = isLate ? kept() : body;
      return () => this.#inner.putIfAbsent(key, sent, isLate ? {} : options);
    });
  }

  async get(key: string, options: RequestOptions = {}): Promise<Buffer | undefined> {
    return this.#meet(
      { kind: "get", key },
      options,
      () => () => this.#inner.get(key, options),
      (body) => body,
    );
  }

  async getRange(
    key: string,
    range: ByteRange,
    options: RequestOptions = {},
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    const send = () => () => this.#inner.getRange(key, range, options);
    return this.#meet({ kind: "get", key }, options, send, (answer) => answer?.bytes);
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    return this.#meet({ kind: "list", key: prefix }, options, () => () => this.#inner.list(prefix, options));
  }

  async delete(keys: readonly string[], options: RequestOptions = {}): Promise<void> {
    return this.#meet({ kind: "delete", key: keys[0] ?? "" }, options, (isLate) => {
      const kept = [...keys];
      return () => this.#inner.delete(kept, isLate ? {} : options);
    });
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }

  async #meet<T>(
    request: PlannedRequest,
    options: RequestOptions,
    prepare: (isLate: boolean) => () => Promise<T>,
    bodyOf?: (answer: T) => Buffer | undefined,
  ): Promise<T> {
    const { fault, delayMs = 0 } = this.#plan(request) ?? {};
    if (fault === "late") {
      const send = prepare(true);
      this.#clock.after(delayMs, () => void send().catch(() => undefined));
      throw this.#happened("late", request);
    }
    const send = prepare(false);
    if (delayMs > 0) await this.#wait(delayMs, options);
    if (fault === "refused") throw this.#happened("refused", request);
    const answer = await send();
    if (fault === "lost-reply") throw this.#happened("lost-reply", request);
    const body = bodyOf?.(answer);
    if (body === undefined || body.length === 0) return answer;
    if (fault === "short-body") throw this.#happened("short-body", request);
    if (fault === "rot") {
      this.counts.rot += 1;
      const bit = Math.floor(this.#random.fraction() * body.length * 8);
      body[bit >>> 3] ^= 1 << (bit & 7);
    }
    return answer;
  }

  async #wait(delayMs: number, options: RequestOptions): Promise<void> {
    try {
      await this.#clock.sleep(delayMs, options.signal);
    } catch {
      throw new OperationError("unavailable", "store request was given up");
    }
  }

  #happened(fault: StoreFault, request: PlannedRequest): OperationError {
    this.counts[fault] += 1;
    const kind = fault === "short-body" ? "corrupt" : "unavailable";
    return new OperationError(kind, `injected fault: ${fault}`, {
      context: { request: request.kind, key: request.key },
    });
  }
}
