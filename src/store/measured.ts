/** Tells an observer about every request that reaches a store: what it was, how it ended, how long, how much. */
import type { Clock } from "../base/clock.ts";
import { type ErrorKind, OperationError } from "../base/errors.ts";
import { bodyLength } from "./body.ts";
import type { ByteRange, ListOptions, ListPage, ObjectStore, PutOutcome, RequestOptions } from "./object-store.ts";

export interface StoreRequest {
  kind: "put" | "get" | "list" | "delete";
  /** "ok" for every answer, "exists" and "no such object" among them. */
  outcome: "ok" | ErrorKind;
  seconds: number;
  /** Body bytes sent (put) or received (get); 0 where the request failed. */
  bytes: number;
}

export interface StoreObserver {
  /** Called once a request, when it has ended; must not throw. */
  request(request: StoreRequest): void;
}

export class MeasuredStore implements ObjectStore {
  readonly location: string;
  readonly #inner: ObjectStore;
  readonly #observer: StoreObserver;
  readonly #clock: Clock;

  constructor(inner: ObjectStore, observer: StoreObserver, clock: Clock) {
    this.location = inner.location;
    this.#inner = inner;
    this.#observer = observer;
    this.#clock = clock;
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options?: RequestOptions): Promise<PutOutcome> {
    return this.#measure("put", this.#inner.putIfAbsent(key, body, options), () => bodyLength(body));
  }

  async get(key: string, options?: RequestOptions): Promise<Buffer | undefined> {
    return this.#measure("get", this.#inner.get(key, options), (body) => body?.length ?? 0);
  }

  async getRange(
    key: string,
    range: ByteRange,
    options?: RequestOptions,
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    return this.#measure("get", this.#inner.getRange(key, range, options), (answer) => answer?.bytes.length ?? 0);
  }

  async list(prefix: string, options?: ListOptions): Promise<ListPage> {
    return this.#measure("list", this.#inner.list(prefix, options), () => 0);
  }

  async delete(keys: readonly string[], options?: RequestOptions): Promise<void> {
    return this.#measure("delete", this.#inner.delete(keys, options), () => 0);
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }

  async #measure<T>(kind: StoreRequest["kind"], request: Promise<T>, bytesOf: (answer: T) => number): Promise<T> {
    const startedMs = this.#clock.monotonicMs();
    const seconds = (): number => (this.#clock.monotonicMs() - startedMs) / 1000;
    try {
      const answer = await request;
      this.#observer.request({ kind, outcome: "ok", seconds: seconds(), bytes: bytesOf(answer) });
      return answer;
    } catch (error) {
      const outcome = error instanceof OperationError ? error.kind : "unavailable";
      this.#observer.request({ kind, outcome, seconds: seconds(), bytes: 0 });
      throw error;
    }
  }
}
