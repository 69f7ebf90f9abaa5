/**
 * Locations: where volumes live that are not in the default store. They are recorded in the default store by a hash,
 * which becomes part of the volume id: a later call that carries nothing but the id finds the volume's store by it.
 * A location is never changed or deleted, holds no credentials, and is compared as it is written.
 */
import { createHash } from "node:crypto";
import { OperationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { listAll, type ObjectStore } from "../store/object-store.ts";
import { decodeLocation, encodeLocation, type LocationRecord } from "./format/control-records.ts";
import { NONCE_BYTES } from "./format/envelope.ts";
import { locationKey, LOCATIONS_PREFIX, parseKey } from "./keys.ts";
import { getDecoded } from "./verified-read.ts";

const hashPattern = /^[0-9a-f]{16}$/;

/** 16 hex digits: the first 8 bytes of SHA-256 over the JSON array [url, endpoint, region]. */
export function locationHash(location: LocationRecord): string {
  const text = JSON.stringify([location.url, location.endpoint, location.region]);
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}

/** Records a location, or finds it recorded, and returns its hash. "conflict" where another one has the same hash. */
export async function registerLocation(
  options: { store: ObjectStore; random: Random },
  location: LocationRecord,
): Promise<string> {
  const hash = locationHash(location);
  const body = encodeLocation(options.random.bytes(NONCE_BYTES), location);
  if ((await options.store.putIfAbsent(locationKey(hash), [body])) === "created") return hash;
  const recorded = await getLocation(options.store, hash);
  if (recorded !== undefined && isSame(recorded, location)) return hash;
  throw new OperationError("conflict", "another location is recorded under this hash: choose another prefix", {
    context: { hash, url: location.url },
  });
}

/** Undefined for an unknown or malformed hash. */
export async function getLocation(store: ObjectStore, hash: string): Promise<LocationRecord | undefined> {
  if (!hashPattern.test(hash)) return undefined;
  return await getDecoded(store, locationKey(hash), decodeLocation);
}

/** All locations, by hash. */
export async function listLocations(store: ObjectStore): Promise<Map<string, LocationRecord>> {
  const locations = new Map<string, LocationRecord>();
  for await (const { key } of listAll(store, LOCATIONS_PREFIX)) {
    const parsed = parseKey(key);
    const location = parsed?.kind === "location" ? await getLocation(store, parsed.hash) : undefined;
    if (parsed?.kind === "location" && location !== undefined) locations.set(parsed.hash, location);
  }
  return locations;
}

function isSame(one: LocationRecord, other: LocationRecord): boolean {
  return one.url === other.url && one.endpoint === other.endpoint && one.region === other.region;
}
