/**
 * Opened stores of a process, by location: the one of the flags, and those of StorageClasses with a bucket of their
 * own. A store is opened once per location and credentials and kept, since each has its pools of connections.
 * Only whoever starts the process may name a directory: the location of a request or a record is a bucket or nothing.
 */
import { createHash } from "node:crypto";
import type { Clock } from "../base/clock.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import { isKind, OperationError } from "../base/errors.ts";
import type { StoreLocation } from "../attachment/data-plane.ts";
import type { Redactor } from "../observability/redaction.ts";
import type { StoreObserver } from "../store/measured.ts";
import type { ObjectStore } from "../store/object-store.ts";
import { openStore, probeStoreWays } from "../store/open-store.ts";
import type { StoreSettings } from "../store/open-store.ts";
import type { RetryingStore, RetryLimits } from "../store/retrying.ts";
import { Catalog } from "../volume/catalog.ts";
import { fenceForDeletion } from "../volume/fencing.ts";
import { flagName } from "./flags.ts";

export interface StoresOptions {
  settings: StoreSettings;
  clock: Clock;
  random: Random;
  log: Log;
  redactor: Redactor;
  observer?: StoreObserver;
  /** Default: every request is retried until it is answered, which only a server's open volumes may do. */
  limits?: RetryLimits;
}

/** A request of a probe is not repeated for longer: somebody waits for the word on what is wrong. */
const probeDeadlineMs = 4000;
const ownLocation: StoreLocation = { url: "", endpoint: "", region: "" };

export class Stores {
  readonly #options: StoresOptions;
  readonly #stores = new Map<string, RetryingStore>();
  readonly #probed = new Map<string, Promise<void>>();

  constructor(options: StoresOptions) {
    this.#options = options;
  }

  /** The store of the flags. */
  own(): ObjectStore {
    return this.of(ownLocation, {});
  }

  /** The store of a location; an empty URL means the one of the flags. Throws "invalid". */
  of(location: StoreLocation, secrets: Readonly<Record<string, string>>): ObjectStore {
    const key = locationKey(location, secrets);
    let store = this.#stores.get(key);
    if (store === undefined) {
      store = openStore(this.#settings(location, secrets), this.#options);
      this.#stores.set(key, store);
    }
    return store;
  }

  /** Probes a location for what the engine relies on, once per process. "invalid" where it cannot be trusted. */
  async probe(location: StoreLocation = ownLocation, secrets: Readonly<Record<string, string>> = {}): Promise<void> {
    const key = locationKey(location, secrets);
    let probed = this.#probed.get(key);
    if (probed === undefined) {
      probed = probeStoreWays(this.#settings(location, secrets), {
        ...this.#options,
        limits: { deadlineMs: probeDeadlineMs },
      });
      this.#probed.set(key, probed);
      probed.catch(() => this.#probed.delete(key));
    }
    await probed;
  }

  /** How many stores are away, and how many requests wait for their turn, over all of them. */
  state(): { away: number; waitingRequests: number } {
    const states = [...this.#stores.values()].map((store) => store.state());
    return {
      away: states.filter(({ isAway }) => isAway).length,
      waitingRequests: states.reduce((sum, { waitingRequests }) => sum + waitingRequests, 0),
    };
  }

  catalog(store: ObjectStore, nodeId: string): Catalog {
    const { clock, random, log } = this.#options;
    return new Catalog({
      store,
      clock,
      random,
      log,
      fenceForDeletion: (volume) => fenceForDeletion({ store, clock, random }, volume, nodeId),
    });
  }

  async close(): Promise<void> {
    await Promise.all([...this.#stores.values()].map((store) => store.close()));
  }

  #settings(location: StoreLocation, secrets: Readonly<Record<string, string>>): StoreSettings {
    const own = this.#options.settings;
    for (const secret of Object.values(secrets)) this.#options.redactor.addSecret(secret);
    const { accessKeyId = "", secretAccessKey = "", sessionToken = "" } = secrets;
    const keys = { accessKeyId, secretAccessKey, ...(sessionToken === "" ? {} : { sessionToken }) };
    const credentials = accessKeyId === "" ? {} : { credentials: { kind: "static" as const, ...keys } };
    if (location.url === "") return { ...own, ...credentials };
    if (!location.url.startsWith("s3://")) {
      throw new OperationError("invalid", "a volume's location must be a bucket: s3://bucket/prefix");
    }
    // Another endpoint's addressing style follows from its being given; the flag is about the flags' endpoint.
    const { pathStyle, ...rest } = own;
    const sameEndpoint = location.endpoint === "";
    return {
      ...rest,
      ...(sameEndpoint && pathStyle !== undefined ? { pathStyle } : {}),
      url: location.url,
      endpoints: sameEndpoint ? (own.endpoints ?? []) : [location.endpoint],
      ...(location.region === "" ? {} : { region: location.region }),
      ...credentials,
    };
  }
}

/** Probes the process's own store at its start. Throws with a message that says what to do. */
export async function mustProbeOwnStore(stores: Stores, settings: StoreSettings): Promise<void> {
  try {
    await stores.probe();
  } catch (error) {
    if (!isKind(error, "unavailable")) throw error;
    throw new OperationError(
      "unavailable",
      `the store cannot be reached: check --${flagName("s3Endpoint")}, the network and the service (${error.message})`,
      { cause: error, context: { store: settings.url } },
    );
  }
}

function locationKey(location: StoreLocation, secrets: Readonly<Record<string, string>>): string {
  const { url, endpoint, region } = location;
  const { accessKeyId = "", secretAccessKey = "", sessionToken = "" } = secrets;
  const parts = [url, endpoint, region, accessKeyId, secretAccessKey, sessionToken];
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}
