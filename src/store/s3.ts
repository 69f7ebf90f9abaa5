/**
 * An object store in S3, or in what speaks its protocol. One call is one request (a listing may take more where the
 * store answers empty pages): retries, measurements and the verdict over ambiguous puts are decorators.
 *
 * - Creation is decided by `If-None-Match: *` alone: 412 means "exists", 409 means that nobody has won yet.
 * - Every body is checked against the announced length and, for ranges, against Content-Range: short is an error.
 * - Every request ends: no progress for `requestTimeoutMs` gives it up. That time doubles with every time-out of its
 *   kind in a row, up to eight times: a dead connection costs little, a store that needs a minute is still used.
 * - No message ever holds a secret, a signature or free text of the server; codes and request ids are checked first.
 */
import type { GetObjectCommandOutput, ListObjectsV2CommandOutput, S3Client } from "@aws-sdk/client-s3";
import { Readable } from "node:stream";
import { assert } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import { isKind, OperationError } from "../base/errors.ts";
import { bodyLength } from "./body.ts";
import { listLimit } from "./list-page.ts";
import { assertKey, assertKeyPrefix } from "./object-key.ts";
import type { ByteRange, ListOptions, ListPage, ObjectStore, PutOutcome, RequestOptions } from "./object-store.ts";
import { loadS3Sdk, makeS3Client, type S3ClientOptions, type S3Sdk, trustAlso } from "./s3-client.ts";
import { keysProvider, type S3Credentials } from "./s3-credentials.ts";
import { S3Endpoints } from "./s3-endpoints.ts";
import { isThrottling, s3Error, saysExists, statusOf } from "./s3-errors.ts";
import { gather, PartsStream, TransferWatch } from "./s3-transfer.ts";

/** Connections that only reads may use, so that uploads never starve them. */
export const READ_CONNECTIONS = 16;

/** The timeout grows to at most this many times `requestTimeoutMs`. */
const MAX_PATIENCE = 8;

/** Sorts behind every character a key may hold. */
const BEHIND_ALL_KEYS = "~";

export interface S3StoreOptions {
  bucket: string;
  /** Put before every key, with a "/" between; may be empty. */
  prefix: string;
  /** URLs, http or https, used in turn. None: the service's own endpoint for the region. */
  endpoints: readonly string[];
  region: string;
  /** http://host/bucket/key instead of http://bucket.host/key. */
  forcePathStyle: boolean;
  credentials: S3Credentials;
  /** File of PEM certificates trusted besides the system's. */
  caFile?: string;
  /** Default 20 s. */
  requestTimeoutMs?: number;
  /** Default 5 s. */
  connectTimeoutMs?: number;
  /** Connections per endpoint, reads and writes together; default 48, at least 17. */
  maxConnections?: number;
  /** Connect to this address of the endpoint alone. */
  address?: { address: string; family: number };
}

type Operation = "put" | "get" | "list" | "delete";

interface Endpoint {
  name: string;
  url: string | undefined;
  /** Made for the first request. */
  clients: Promise<Clients> | undefined;
}

interface Clients {
  sdk: S3Sdk["s3"];
  reader: S3Client;
  writer: S3Client;
}

export class S3Store implements ObjectStore {
  readonly location: string;
  readonly #bucket: string;
  readonly #keyPrefix: string;
  readonly #clock: Clock;
  readonly #endpoints: S3Endpoints<Endpoint>;
  readonly #shared: Omit<S3ClientOptions, "endpoint" | "connections">;
  readonly #maxConnections: number;
  readonly #requestTimeoutMs: number;
  readonly #worked = new Set<Operation>();
  /** How many times `requestTimeoutMs` the next request of this kind may take: fast gets say nothing about puts. */
  readonly #patience: Record<Operation, number> = { put: 1, get: 1, list: 1, delete: 1 };

  constructor(options: S3StoreOptions, clock: Clock) {
    this.#bucket = options.bucket;
    this.#keyPrefix = options.prefix === "" ? "" : `${options.prefix}/`;
    this.location = `s3://${options.bucket}${options.prefix === "" ? "" : `/${options.prefix}`}`;
    this.#clock = clock;
    this.#requestTimeoutMs = options.requestTimeoutMs ?? 20_000;
    this.#maxConnections = options.maxConnections ?? 48;
    assert(this.#maxConnections > READ_CONNECTIONS, `at least ${READ_CONNECTIONS + 1} connections are needed`);
    this.#shared = {
      region: options.region,
      forcePathStyle: options.forcePathStyle,
      keys: keysProvider(options.credentials, clock),
      secureContext: options.caFile === undefined ? undefined : trustAlso(options.caFile),
      connectTimeoutMs: options.connectTimeoutMs ?? 5000,
      address: options.address,
    };
    const endpoints = options.endpoints.length === 0 ? [undefined] : options.endpoints;
    this.#endpoints = new S3Endpoints(
      endpoints.map((url): Endpoint => ({ name: url ?? "default", url, clients: undefined })),
    );
  }

  async putIfAbsent(key: string, body: readonly Uint8Array[], options: RequestOptions = {}): Promise<PutOutcome> {
    assertKey(key);
    const length = bodyLength(body);
    return this.#request("put", key, options, async ({ sdk, writer }, watch) => {
      watch.expect(length);
      const stream = new PartsStream(body, () => watch.moved());
      const command = new sdk.PutObjectCommand({
        Bucket: this.#bucket,
        Key: this.#keyPrefix + key,
        Body: stream,
        ContentLength: length,
        ContentType: "application/octet-stream",
        IfNoneMatch: "*",
      });
      try {
        await writer.send(command, { abortSignal: watch.signal });
        return "created";
      } catch (error) {
        if (!saysExists(error)) throw error;
        return "exists";
      } finally {
        // An answer may come before the whole body was sent, which is the caller's again from now on.
        if (!stream.readableEnded) watch.tearDown();
        stream.destroy();
      }
    });
  }

  async get(key: string, options: RequestOptions = {}): Promise<Buffer | undefined> {
    const answer = await this.#get(key, undefined, options);
    return answer?.bytes;
  }

  async getRange(
    key: string,
    range: ByteRange,
    options: RequestOptions = {},
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    assert(Number.isSafeInteger(range.offset) && range.offset >= 0, `range offset: ${range.offset}`);
    assert(Number.isSafeInteger(range.length) && range.length > 0, `range length: ${range.length}`);
    return this.#get(key, range, options);
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    assertKeyPrefix(prefix);
    const limit = listLimit(options);
    const startAfter = startAfterOf(prefix, options);
    return this.#request("list", prefix, options, async ({ sdk, reader }, watch) => {
      let token: string | undefined;
      for (;;) {
        const command = new sdk.ListObjectsV2Command({
          Bucket: this.#bucket,
          Prefix: this.#keyPrefix + prefix,
          MaxKeys: limit,
          ...(startAfter === undefined ? {} : { StartAfter: this.#keyPrefix + startAfter }),
          ...(options.delimiter === undefined ? {} : { Delimiter: options.delimiter }),
          ...(token === undefined ? {} : { ContinuationToken: token }),
        });
        const answer = await reader.send(command, { abortSignal: watch.signal });
        watch.moved();
        const page = this.#pageOf(prefix, answer, startAfter);
        token = answer.NextContinuationToken;
        const isEmpty = page.objects.length + page.prefixes.length === 0;
        if (!isEmpty || answer.IsTruncated !== true || token === undefined) return page;
      }
    });
  }

  async delete(keys: readonly string[], options: RequestOptions = {}): Promise<void> {
    assert(keys.length <= 1000, `too many keys in one delete: ${keys.length}`);
    for (const key of keys) assertKey(key);
    if (keys.length === 0) return;
    await this.#request("delete", keys[0], options, async ({ sdk, writer }, watch) => {
      if (keys.length === 1) {
        const command = new sdk.DeleteObjectCommand({ Bucket: this.#bucket, Key: this.#keyPrefix + keys[0] });
        await writer.send(command, { abortSignal: watch.signal });
        return;
      }
      const command = new sdk.DeleteObjectsCommand({
        Bucket: this.#bucket,
        Delete: { Objects: keys.map((key) => ({ Key: this.#keyPrefix + key })), Quiet: true },
      });
      const answer = await writer.send(command, { abortSignal: watch.signal });
      const refused = answer.Errors?.find((error) => error.Code !== "NoSuchKey");
      if (refused !== undefined) throw Object.assign(new Error("not deleted"), { code: refused.Code });
    });
  }

  async close(): Promise<void> {
    for (const { clients } of this.#endpoints.values) {
      const made = await clients;
      made?.reader.destroy();
      made?.writer.destroy();
    }
  }

  async #get(
    key: string,
    range: ByteRange | undefined,
    options: RequestOptions,
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    assertKey(key);
    return this.#request("get", key, options, async ({ sdk, reader }, watch) => {
      const command = new sdk.GetObjectCommand({
        Bucket: this.#bucket,
        Key: this.#keyPrefix + key,
        ...(range === undefined ? {} : { Range: `bytes=${range.offset}-${range.offset + range.length - 1}` }),
      });
      let answer: GetObjectCommandOutput;
      try {
        answer = await reader.send(command, { abortSignal: watch.signal });
      } catch (error) {
        if (isMissingObject(error)) return undefined;
        const totalBytes = range === undefined ? undefined : sizeBelowRange(error, range);
        if (totalBytes === undefined) throw error;
        return { bytes: Buffer.alloc(0), totalBytes };
      }
      watch.moved();
      const body = answer.Body;
      assert(body instanceof Readable, "the body of an answer is a stream");
      try {
        const { length, totalBytes } = announced(answer, range);
        watch.expect(length ?? 0);
        const bytes = await gather(body, length, () => watch.moved());
        return { bytes, totalBytes: totalBytes ?? bytes.length };
      } catch (error) {
        body.on("error", () => {}).destroy();
        throw error;
      }
    });
  }

  /** Runs one request on the endpoint whose turn it is, under a watch, and translates what goes wrong. */
  async #request<T>(
    operation: Operation,
    key: string,
    options: RequestOptions,
    send: (clients: Clients, watch: TransferWatch) => Promise<T>,
  ): Promise<T> {
    const endpoint = this.#endpoints.pick(this.#clock.monotonicMs());
    const clients = await (endpoint.clients ??= this.#connect(endpoint.url));
    const watch = new TransferWatch(this.#clock, this.#requestTimeoutMs * this.#patience[operation], options.signal);
    try {
      const result = await send(clients, watch);
      this.#endpoints.succeeded(endpoint);
      this.#worked.add(operation);
      if (watch.elapsedMs < this.#requestTimeoutMs) this.#patience[operation] = 1;
      return result;
    } catch (error) {
      throw this.#failed(error, operation, key, endpoint, watch);
    } finally {
      watch.end();
    }
  }

  async #connect(endpoint: string | undefined): Promise<Clients> {
    const sdk = await loadS3Sdk();
    const client = (connections: number): S3Client => makeS3Client(sdk, { ...this.#shared, endpoint, connections });
    return { sdk: sdk.s3, reader: client(READ_CONNECTIONS), writer: client(this.#maxConnections - READ_CONNECTIONS) };
  }

  #failed(error: unknown, operation: Operation, key: string, endpoint: Endpoint, watch: TransferWatch): unknown {
    const cause = watch.ranOut ? { name: "TimeoutError" } : watch.gaveUp ? { name: "AbortError" } : error;
    if (watch.ranOut) this.#patience[operation] = Math.min(this.#patience[operation] * 2, MAX_PATIENCE);
    const hasWorked = this.#worked.has(operation);
    const failure = s3Error(cause, { operation, bucket: this.#bucket, endpoint: endpoint.name, key, hasWorked });
    const isItsFault =
      isKind(failure, "unavailable") && !watch.gaveUp && !isThrottling(error) && statusOf(error) !== 409;
    if (isItsFault) this.#endpoints.failed(endpoint, this.#clock.monotonicMs());
    return failure;
  }

  #pageOf(prefix: string, answer: ListObjectsV2CommandOutput, startAfter: string | undefined): ListPage {
    const page: ListPage = { objects: [], prefixes: [], next: undefined };
    let last = startAfter ?? "";
    for (const { Key, Size, LastModified } of answer.Contents ?? []) {
      const key = this.#ownKey(Key, prefix);
      assertListed(Size !== undefined && LastModified !== undefined && key > last, this.location);
      page.objects.push({ key, sizeBytes: Size, modifiedMs: LastModified.getTime() });
      last = key;
    }
    let lastGroup = startAfter ?? "";
    for (const { Prefix } of answer.CommonPrefixes ?? []) {
      const group = this.#ownKey(Prefix, prefix);
      assertListed(group > lastGroup, this.location);
      page.prefixes.push(group);
      lastGroup = group;
    }
    if (answer.IsTruncated === true) page.next = last > lastGroup ? last : lastGroup;
    return page;
  }

  /** The key without the store's prefix. */
  #ownKey(key: string | undefined, prefix: string): string {
    assertListed(key !== undefined && key.startsWith(this.#keyPrefix + prefix), this.location);
    return key.slice(this.#keyPrefix.length);
  }
}

/** Where to go on: behind a whole group, when `after` is one or stands in one. */
function startAfterOf(prefix: string, options: ListOptions): string | undefined {
  const { after, delimiter } = options;
  if (after === undefined || delimiter === undefined || !after.startsWith(prefix)) return after;
  const end = after.indexOf(delimiter, prefix.length);
  return end === -1 ? after : after.slice(0, end + 1) + BEHIND_ALL_KEYS;
}

function assertListed(condition: boolean, location: string): asserts condition {
  if (condition) return;
  throw new OperationError(
    "invalid",
    "the store does not list keys in byte order after a given key, as S3 does: use a store that does",
    { context: { location } },
  );
}

/** Nothing but the code says so: a bare 404 may come from a proxy, or mean a bucket or a key id that is unknown. */
function isMissingObject(error: unknown): boolean {
  return (error as { name?: string }).name === "NoSuchKey";
}

/** The object's size where the store says that it ends before `range`; undefined for every other error. */
function sizeBelowRange(error: unknown, range: ByteRange): number | undefined {
  if (statusOf(error) !== 416) return undefined;
  const { $response, ActualObjectSize } = error as {
    $response?: { headers?: Record<string, string> };
    ActualObjectSize?: string | number;
  };
  const header = /^bytes \*\/(\d+)$/.exec($response?.headers?.["content-range"] ?? "");
  const size = Number(header?.[1] ?? ActualObjectSize);
  if (!Number.isSafeInteger(size)) return undefined;
  if (size <= range.offset) return size;
  throw new OperationError("corrupt", "the store refuses a range of an object that it says is long enough for it", {
    context: { askedOffset: range.offset, totalBytes: size },
  });
}

/** What an answer says about its body, checked against the range that was asked for. */
function announced(
  answer: GetObjectCommandOutput,
  range: ByteRange | undefined,
): { length: number | undefined; totalBytes: number | undefined } {
  const length = answer.ContentLength;
  if (range === undefined) return { length, totalBytes: length };
  const content = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(answer.ContentRange ?? "");
  const first = content === null ? 0 : Number(content[1]);
  const totalBytes = content === null ? length : Number(content[3]);
  const end = content === null ? length : Number(content[2]) + 1;
  if (totalBytes !== undefined && end !== undefined && first === range.offset) {
    const isWhole = end === Math.min(range.offset + range.length, totalBytes);
    if (isWhole && (length === undefined || length === end - first)) return { length: end - first, totalBytes };
  }
  throw new OperationError("corrupt", "the store answered with another range than it was asked for", {
    context: {
      askedOffset: range.offset,
      askedBytes: range.length,
      answered: /^[\w */-]{1,100}$/.test(answer.ContentRange ?? "") ? (answer.ContentRange ?? "") : "unreadable",
      answeredBytes: length ?? -1,
    },
  });
}
