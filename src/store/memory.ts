/**
 * An object store in the memory of one process: for tests, the simulator and trying things out. It keeps the contract
 * of object-store.ts to the letter (bodies are copied in and out, pages are cut as S3 cuts them) and forgets
 * everything with the process. Every call takes effect at once when it is made; only its answer is asynchronous.
 */
import type { Clock } from "../base/clock.ts";
import { OperationError } from "../base/errors.ts";
import { systemClock } from "../base/system-clock.ts";
import { bodyLength } from "./body.ts";
import { cutPage } from "./list-page.ts";
import { assertKey, assertKeyPrefix } from "./object-key.ts";
import type {
  ByteRange,
  ListedObject,
  ListOptions,
  ListPage,
  ObjectStore,
  PutOutcome,
  RequestOptions,
} from "./object-store.ts";

interface StoredObject {
  body: Buffer;
  modifiedMs: number;
}

export class MemoryStore implements ObjectStore {
  readonly location = "memory:";
  readonly #objects = new Map<string, StoredObject>();
  /** The keys in order. */
  readonly #sortedKeys: string[] = [];
  readonly #clock: Pick<Clock, "now">;

  constructor(options: { clock?: Pick<Clock, "now"> } = {}) {
    this.#clock = options.clock ?? systemClock;
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options: RequestOptions = {}): Promise<PutOutcome> {
    assertKey(key);
    failIfAborted(options);
    const length = bodyLength(body);
    if (this.#objects.has(key)) return "exists";
    this.#objects.set(key, { body: Buffer.concat(body, length), modifiedMs: this.#clock.now() });
    this.#sortedKeys.splice(firstAtLeast(this.#sortedKeys, key), 0, key);
    return "created";
  }

  async get(key: string, options: RequestOptions = {}): Promise<Buffer | undefined> {
    assertKey(key);
    failIfAborted(options);
    const object = this.#objects.get(key);
    return object === undefined ? undefined : Buffer.from(object.body);
  }

  async getRange(
    key: string,
    range: ByteRange,
    options: RequestOptions = {},
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    assertKey(key);
    failIfAborted(options);
    const object = this.#objects.get(key);
    if (object === undefined) return undefined;
    const { body } = object;
    const bytes = Buffer.allocUnsafe(Math.max(0, Math.min(range.length, body.length - range.offset)));
    if (bytes.length > 0) body.copy(bytes, 0, range.offset, range.offset + bytes.length);
    return { bytes, totalBytes: body.length };
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    assertKeyPrefix(prefix);
    failIfAborted(options);
    return cutPage(prefix, this.#keysFrom(prefix, options.after), options);
  }

  async delete(keys: readonly string[], options: RequestOptions = {}): Promise<void> {
    for (const key of keys) assertKey(key);
    failIfAborted(options);
    for (const key of keys) {
      if (this.#objects.delete(key)) this.#sortedKeys.splice(firstAtLeast(this.#sortedKeys, key), 1);
    }
  }

  async close(): Promise<void> {}

  /** What stands under a key, itself and no copy: not to be changed, and never what a store answers unseen. */
  view(key: string): Buffer | undefined {
    return this.#objects.get(key)?.body;
  }

  /** What the store holds, for tests and reports. */
  totals(): { objects: number; bytes: number } {
    let bytes = 0;
    for (const object of this.#objects.values()) bytes += object.body.length;
    return { objects: this.#objects.size, bytes };
  }

  *#keysFrom(prefix: string, after: string | undefined): Generator<ListedObject> {
    const keys = this.#sortedKeys;
    let index = after !== undefined && after >= prefix ? firstAbove(keys, after) : firstAtLeast(keys, prefix);
    for (; index < keys.length && keys[index].startsWith(prefix); index += 1) {
      const object = this.#objects.get(keys[index]);
      if (object === undefined) continue;
      yield { key: keys[index], sizeBytes: object.body.length, modifiedMs: object.modifiedMs };
    }
  }
}

function failIfAborted(options: RequestOptions): void {
  if (options.signal?.aborted === true) throw new OperationError("unavailable", "store request was given up");
}

function firstAtLeast(sorted: readonly string[], key: string): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle] < key) low = middle + 1;
    else high = middle;
  }
  return low;
}

function firstAbove(sorted: readonly string[], key: string): number {
  const index = firstAtLeast(sorted, key);
  return sorted[index] === key ? index + 1 : index;
}
