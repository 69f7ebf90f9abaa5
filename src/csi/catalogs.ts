/**
 * What the controller needs of the rest of the driver: catalogs of stores, and which nodes there are. The command
 * line composes them; tests give them memory stores. The controller must never open a store by itself.
 */
import type { Log } from "../base/log.ts";
import type { Catalog } from "../volume/catalog.ts";
import type { LocationRecord } from "../volume/format/control-records.ts";

export type VolumeCatalog = Pick<
  Catalog,
  | "create"
  | "get"
  | "list"
  | "publish"
  | "unpublish"
  | "getPublication"
  | "delete"
  | "registerLocation"
  | "getLocation"
  | "listLocations"
>;

/**
 * The catalog of a location; of the driver's own store where it is undefined. `secrets` are the request's access keys
 * (accessKeyId, secretAccessKey, sessionToken), empty for the driver's own. A location that is opened for the first
 * time is probed for conditional writes ("invalid" where it fails). Called often: it keeps opened stores.
 */
export type CatalogFor = (
  location: LocationRecord | undefined,
  secrets: Readonly<Record<string, string>>,
) => Promise<VolumeCatalog>;

export interface ControllerOptions {
  catalogFor: CatalogFor;
  /** True for a node that has registered itself (node-registry.ts). */
  isKnownNode(nodeId: string): Promise<boolean>;
  log: Log;
}
