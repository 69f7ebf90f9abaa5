/**
 * The object store: what the engine needs of S3, and the consistency it relies on. Implementations: s3, directory,
 * memory; decorators: retrying, measured, faulty. One contract suite runs on all of them.
 *
 * Consistency contract
 * - Keys are written once. putIfAbsent is linearizable per key: of all racing calls, over all processes and endpoints,
 *   exactly one creates the object, and every other one answers "exists".
 * - After a create was answered, every get and list that starts later, anywhere, sees the object, whole.
 * - get of a range returns exactly that range of the body as written, or fails; never short, never another version.
 * - After a delete was answered, get and list no longer see the object.
 *
 * Identity of a write: the first IDENTITY_BYTES of every body are unique to the operation that wrote it (they hold a
 * random nonce: volume/format/envelope.ts). The retrying decorator uses them to tell "my own earlier attempt
 * got through and its reply was lost" from "somebody else was first". A bare store answers "exists" for both.
 *
 * Errors are OperationErrors: "unavailable" (time-out, 5xx, throttling, connection lost: the outcome is unknown),
 * "not-found" (no such bucket), "invalid" (credentials, permissions, a request that cannot succeed: the message names
 * the way out), "corrupt" (body does not match length or checksum), "exhausted" (directory store: disk full).
 */
export const IDENTITY_BYTES = 64;

export type PutOutcome = "created" | "exists";

export interface RequestOptions {
  /** Gives up, with "unavailable", when it aborts. */
  signal?: AbortSignal;
  /**
   * One request and no more, whatever decorators stand between: where it has no definite answer, it fails with
   * "unavailable", and nothing of it is on its way but that one request, which may take effect at any later time.
   */
  once?: boolean;
  /**
   * Throws "corrupt" where the body of a get is not what it should be: a patient store (retrying.ts) then asks again, a
   * few times, before it fails with that. A bare store does not call it.
   */
  verify?: (bytes: Buffer, totalBytes: number) => void;
}

export interface ByteRange {
  offset: number;
  length: number;
}

export interface ListedObject {
  key: string;
  sizeBytes: number;
  /** Milliseconds since 1970 by the store's clock. */
  modifiedMs: number;
}

export interface ListPage {
  objects: ListedObject[];
  /** Set where `delimiter` was given: key prefixes up to and including the delimiter. */
  prefixes: string[];
  /** Pass as `after` for the next page; undefined on the last one. */
  next: string | undefined;
}

export interface ListOptions extends RequestOptions {
  /** Only keys greater than this one (plain byte order). */
  after?: string;
  /** At most this many entries; 1 to 1000, default 1000. */
  limit?: number;
  delimiter?: "/";
}

export interface ObjectStore {
  /** For logs and errors: "s3://bucket/prefix", "file:///path", "memory:". No secrets. */
  readonly location: string;
  /** Creates the object where none exists. `body` parts are written one after another, and borrowed until it settles. */
  putIfAbsent(key: string, body: readonly Uint8Array[], options?: RequestOptions): Promise<PutOutcome>;
  /** The whole body, or undefined where no object has this key. */
  get(key: string, options?: RequestOptions): Promise<Buffer | undefined>;
  /**
   * A range of the body: the part of [offset, offset + length) that lies inside the object. It is shorter than
   * `length` only where the object ends; empty where it ends before `offset`; undefined where there is no object.
   * `totalBytes` is the object's size. The memory of `bytes` is the caller's: nobody else reads or keeps it.
   */
  getRange(
    key: string,
    range: ByteRange,
    options?: RequestOptions,
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined>;
  /** Keys that start with `prefix`, in plain byte order, a page at a time. */
  list(prefix: string, options?: ListOptions): Promise<ListPage>;
  /** Deletes at most 1000 keys; missing ones are no error. Not atomic over keys. */
  delete(keys: readonly string[], options?: RequestOptions): Promise<void>;
  /** Releases connections; idempotent. */
  close(): Promise<void>;
}

/** Every object under `prefix`, all pages. */
export async function* listAll(
  store: ObjectStore,
  prefix: string,
  options: ListOptions = {},
): AsyncGenerator<ListedObject> {
  let after = options.after;
  for (;;) {
    const page = await store.list(prefix, after === undefined ? options : { ...options, after });
    yield* page.objects;
    if (page.next === undefined) return;
    after = page.next;
  }
}
