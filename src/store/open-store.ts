/**
 * The one place where a store is put together from its URL and settings: the bare store, measured request by request,
 * made patient. And the one place where every way to a store is probed before it is trusted.
 */
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import type { Clock } from "../base/clock.ts";
import { asOperationError, describe, isKind } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import { DirectoryStore } from "./directory.ts";
import { MeasuredStore, type StoreObserver } from "./measured.ts";
import { MemoryStore } from "./memory.ts";
import type { ObjectStore } from "./object-store.ts";
import { PROBE_PREFIX, probeStore } from "./probe.ts";
import { RetryingStore, type RetryLimits } from "./retrying.ts";
import type { S3Credentials } from "./s3-credentials.ts";
import { S3Store, type S3StoreOptions } from "./s3.ts";
import { loadS3Sdk } from "./s3-client.ts";
import { parseEndpoint, parseStoreUrl } from "./store-url.ts";

/** What a user says about a store. All but `url` concern S3 alone. */
export interface StoreSettings {
  url: string;
  /** http(s) URLs, used in turn; none: AWS's own for the region. */
  endpoints?: readonly string[];
  /** Default "us-east-1". */
  region?: string;
  /** Default: true where an endpoint is given, which is what most other vendors' stores need. */
  pathStyle?: boolean;
  caFile?: string;
  /** Default: the environment and the usual chain. */
  credentials?: S3Credentials;
  requestTimeoutMs?: number;
  connectTimeoutMs?: number;
  maxConnections?: number;
}

export interface StoreParts {
  clock: Clock;
  random: Random;
  log: Log;
  observer?: StoreObserver;
  /** Default: retry until the caller's signal aborts. */
  limits?: RetryLimits;
}

/** A ready store. Throws "invalid" where the settings are wrong; contacts nobody. */
export function openStore(settings: StoreSettings, parts: StoreParts): RetryingStore {
  return decorate(openBareStore(settings, parts), parts);
}

/** Loads the code that a store of these settings would load with its first request. Contacts nobody. */
export async function preloadStore(settings: StoreSettings): Promise<void> {
  if (parseStoreUrl(settings.url).kind === "s3") await loadS3Sdk();
}

/**
 * Probes the store of `settings` (probe.ts) over every endpoint and every address these resolve to, at once. Rejects
 * with "invalid" where it cannot be trusted or reached as configured; `limits` in `parts` bound the attempts.
 */
export async function probeStoreWays(
  settings: StoreSettings,
  parts: StoreParts,
  counts: { keys?: number; racers?: number } = {},
): Promise<void> {
  const all = (await waysTo(settings)).map((way) => openBareStore(settings, parts, way));
  try {
    const [first, ...peers] = (await reachable(all, parts)).map((bare) => decorate(bare, parts));
    await probeStore(first, { ...parts, ...counts, peers });
  } finally {
    await Promise.all(all.map((way) => way.close()));
  }
}

/** Those that answer at all: an address that this machine has no route to is no way for it. */
async function reachable(ways: readonly ObjectStore[], parts: StoreParts): Promise<readonly ObjectStore[]> {
  if (ways.length === 1) return ways;
  const answers = await Promise.allSettled(ways.map((way) => way.list(PROBE_PREFIX, { limit: 1 })));
  const silent = answers.filter((answer) => answer.status === "rejected" && isKind(answer.reason, "unavailable"));
  for (const answer of silent) {
    if (answer.status === "rejected")
      parts.log.warn("one way to the store is silent", { error: describe(answer.reason) });
  }
  return silent.length === ways.length ? ways : ways.filter((_, index) => !silent.includes(answers[index]));
}

/** One endpoint at one address; empty for stores that have but one way. */
type Way = Pick<S3StoreOptions, "address"> & { endpoint?: string };

/** More addresses than these are not raced at once. */
const MAX_WAYS = 8;

async function waysTo(settings: StoreSettings): Promise<Way[]> {
  const ways: Way[] = [];
  if (settings.url.startsWith("s3:")) {
    for (const endpoint of settings.endpoints ?? []) {
      for (const address of await addressesOf(endpoint)) ways.push({ endpoint, address });
    }
  }
  return ways.length === 0 ? [{}] : ways.slice(0, MAX_WAYS);
}

async function addressesOf(endpoint: string): Promise<{ address: string; family: number }[]> {
  const host = parseEndpoint(endpoint).hostname.replace(/^\[|\]$/g, "");
  const family = isIP(host);
  if (family !== 0) return [{ address: host, family }];
  try {
    return await lookup(host, { all: true });
  } catch (error) {
    throw asOperationError(error, "unavailable", "the S3 endpoint's host name does not resolve");
  }
}

function decorate(bare: ObjectStore, parts: StoreParts): RetryingStore {
  const measured = parts.observer === undefined ? bare : new MeasuredStore(bare, parts.observer, parts.clock);
  return new RetryingStore(measured, parts);
}

function openBareStore(settings: StoreSettings, parts: StoreParts, way: Way = {}): ObjectStore {
  const place = parseStoreUrl(settings.url);
  switch (place.kind) {
    case "memory":
      return new MemoryStore({ clock: parts.clock });
    case "directory":
      return new DirectoryStore({ root: place.path, clock: parts.clock, random: parts.random });
    case "s3":
      return openS3(place, settings, parts, way);
  }
}

function openS3(
  place: { bucket: string; prefix: string },
  settings: StoreSettings,
  parts: StoreParts,
  way: Way,
): S3Store {
  const endpoints = (way.endpoint === undefined ? (settings.endpoints ?? []) : [way.endpoint]).map(
    (endpoint) => parseEndpoint(endpoint).href,
  );
  const { caFile, requestTimeoutMs, connectTimeoutMs, maxConnections } = settings;
  return new S3Store(
    {
      bucket: place.bucket,
      prefix: place.prefix,
      endpoints,
      region: settings.region ?? "us-east-1",
      forcePathStyle: settings.pathStyle ?? endpoints.length > 0,
      credentials: settings.credentials ?? { kind: "default" },
      ...(caFile === undefined ? {} : { caFile }),
      ...(requestTimeoutMs === undefined ? {} : { requestTimeoutMs }),
      ...(connectTimeoutMs === undefined ? {} : { connectTimeoutMs }),
      ...(maxConnections === undefined ? {} : { maxConnections }),
      ...(way.address === undefined ? {} : { address: way.address }),
    },
    parts.clock,
  );
}
