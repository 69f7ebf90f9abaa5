/**
 * A decorator for volumes that are being served: what the store refuses for reasons that a person can mend (credentials
 * that were revoked, a bucket that is gone, a clock that is off) is tried again until it works, because giving up would
 * turn into I/O errors of a mounted file system. Off until serving() is called: while a volume is opened, the caller
 * wants to hear of such errors at once.
 *
 * Requests that wait ask again one at a time, every five seconds; once one is answered, all of them do.
 * It gives up only when the request's signal aborts. What is "corrupt" is not tried again.
 */
import type { Clock } from "../base/clock.ts";
import { describe, isKind } from "../base/errors.ts";
import type { Log, LogFields } from "../base/log.ts";
import type { ByteRange, ListOptions, ListPage, ObjectStore, PutOutcome, RequestOptions } from "./object-store.ts";

const PAUSE_MS = 5000;
/** All requests of a volume fail together: one line in this time tells of them. */
const SAY_EVERY_MS = 60_000;

export class PatientStore implements ObjectStore {
  readonly location: string;
  readonly #store: ObjectStore;
  readonly #clock: Clock;
  readonly #log: Log;
  #isServing = false;
  #quietUntilMs = -Infinity;
  /** Lets requests go on that wait for their turn, in the order in which they came. */
  readonly #waiting = new Set<() => void>();
  #isCalling = false;

  constructor(store: ObjectStore, environment: { clock: Clock; log: Log }) {
    this.location = store.location;
    this.#store = store;
    this.#clock = environment.clock;
    this.#log = environment.log;
  }

  /** From now on errors are waited out. */
  serving(): void {
    this.#isServing = true;
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options?: RequestOptions): Promise<PutOutcome> {
    return await this.#persist("put", key, options, () => this.#store.putIfAbsent(key, body, options));
  }

  async get(key: string, options?: RequestOptions): Promise<Buffer | undefined> {
    return await this.#persist("get", key, options, () => this.#store.get(key, options));
  }

  async getRange(
    key: string,
    range: ByteRange,
    options?: RequestOptions,
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    return await this.#persist("get", key, options, () => this.#store.getRange(key, range, options));
  }

  async list(prefix: string, options?: ListOptions): Promise<ListPage> {
    return await this.#persist("list", prefix, options, () => this.#store.list(prefix, options));
  }

  async delete(keys: readonly string[], options?: RequestOptions): Promise<void> {
    await this.#persist("delete", keys[0] ?? "", options, () => this.#store.delete(keys, options));
  }

  async close(): Promise<void> {
    await this.#store.close();
  }

  #complain(fields: LogFields): void {
    const nowMs = this.#clock.monotonicMs();
    if (nowMs < this.#quietUntilMs) return;
    this.#quietUntilMs = nowMs + SAY_EVERY_MS;
    this.#log.error("the store refuses a request; it is tried again until it works", fields);
  }

  async #persist<T>(
    operation: string,
    key: string,
    options: RequestOptions | undefined,
    request: () => Promise<T>,
  ): Promise<T> {
    for (;;) {
      try {
        const answer = await request();
        for (const goOn of this.#waiting) goOn();
        return answer;
      } catch (error) {
        if (!this.#isServing || options?.once === true || options?.signal?.aborted === true) throw error;
        if (isKind(error, "corrupt", "fenced")) throw error;
        this.#complain({ operation, key, error: describe(error) });
      }
      await this.#turn(options?.signal);
    }
  }

  /** Rejects with the signal's reason when it aborts. */
  #turn(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#waiting.delete(goOn);
        signal?.removeEventListener("abort", giveUp);
      };
      const goOn = (): void => {
        leave();
        resolve();
      };
      const giveUp = (): void => {
        leave();
        reject(signal?.reason as Error);
      };
      signal?.addEventListener("abort", giveUp, { once: true });
      this.#waiting.add(goOn);
      if (this.#waiting.size === 1) this.#callNext();
    });
  }

  #callNext(): void {
    if (this.#isCalling) return;
    this.#isCalling = true;
    this.#clock.after(PAUSE_MS, () => {
      this.#isCalling = false;
      const [goOn] = this.#waiting;
      goOn?.();
      if (this.#waiting.size > 0) this.#callNext();
    });
  }
}
