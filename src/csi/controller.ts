/**
 * The Controller service: volumes and publications as records of the store. It touches no device and keeps nothing in
 * memory but which calls are at work, so any number of replicas may run; what they race for is decided by the store.
 * - A volume's id is derived from its name: a CreateVolume that is repeated finds the volume of the first call.
 * - A publication is the right of one node to own the volume. It is given to one node at a time and only taken back by
 *   ControllerUnpublishVolume; that there is never a second writer even then is the engine's doing (its epochs).
 * - A volume lives in the driver's own store or in a location of a StorageClass; the latter is recorded in the former,
 *   because later calls bring nothing but the id (volume-names.ts).
 */
import { isKind, OperationError } from "../base/errors.ts";
import { MIN_FILE_SYSTEM_BYTES, type FileSystemType } from "../host/filesystem.ts";
import { RESERVED_BYTES } from "../host/format-marker.ts";
import type { LocationRecord, VolumeMeta } from "../volume/format/control-records.ts";
import { locationHash } from "../volume/locations.ts";
import { BLOCK_BYTES, isVolumeId, MIN_VOLUME_BYTES, type VolumeId } from "../volume/identity.ts";
import type { ControllerOptions, VolumeCatalog } from "./catalogs.ts";
import { encodePublishContext } from "./publish-context.ts";
import type { Handlers } from "./grpc-server.ts";
import type * as messages from "./messages.ts";
import { OperationLock } from "./operation-lock.ts";
import { locationContext, parseParameters, type VolumeParameters } from "./parameters.ts";
import * as requests from "./requests.ts";
import { listVolumes } from "./volume-listing.ts";
import { volumeMessage } from "./volume-message.ts";
import { getLocationHash, volumeIdOfName } from "./volume-names.ts";

const capabilities = [
  "CREATE_DELETE_VOLUME",
  "PUBLISH_UNPUBLISH_VOLUME",
  "LIST_VOLUMES",
  "LIST_VOLUMES_PUBLISHED_NODES",
  "PUBLISH_READONLY",
  "SINGLE_NODE_MULTI_WRITER",
] as const;

interface WantedVolume {
  name: string;
  capacity: requests.WantedCapacity;
  parameters: VolumeParameters;
  fsType: FileSystemType | undefined;
  /** What Kubernetes tells about the claim, for people. */
  labels: messages.TextMap;
}

interface LocatedCatalog {
  catalog: VolumeCatalog;
  location: LocationRecord | undefined;
}

export class ControllerService {
  readonly #options: ControllerOptions;
  readonly #lock = new OperationLock();

  constructor(options: ControllerOptions) {
    this.#options = options;
  }

  handlers(): Handlers {
    return {
      controllerGetCapabilities: async () => ({ capabilities: capabilities.map((type) => ({ rpc: { type } })) }),
      createVolume: (request: messages.CreateVolumeRequest) => this.createVolume(request),
      deleteVolume: (request: messages.DeleteVolumeRequest) => this.deleteVolume(request),
      controllerPublishVolume: (request: messages.ControllerPublishVolumeRequest) => this.publishVolume(request),
      controllerUnpublishVolume: (request: messages.ControllerUnpublishVolumeRequest) => this.unpublishVolume(request),
      validateVolumeCapabilities: (request: messages.ValidateVolumeCapabilitiesRequest) => this.validate(request),
      listVolumes: (request: messages.ListVolumesRequest) => listVolumes(request, this.#options),
    };
  }

  async createVolume(request: messages.CreateVolumeRequest): Promise<messages.CreateVolumeResponse> {
    const wanted = parseCreateVolume(request);
    const secrets = requests.parseSecrets(request.secrets);
    const { location } = wanted.parameters;
    const volumeId = volumeIdOfName(wanted.name, location === undefined ? undefined : locationHash(location));
    return this.#lock.run(volumeId, "CreateVolume", async () => {
      // The store is opened, and so probed, before its location is recorded: a bucket that is missing leaves no trace.
      const catalog = await this.#options.catalogFor(location, secrets);
      if (location !== undefined) await (await this.#ownCatalog()).registerLocation(location);
      const meta = await createOrFind(catalog, volumeId, wanted);
      return { volume: volumeMessage(meta, location) };
    });
  }

  async deleteVolume(request: messages.DeleteVolumeRequest): Promise<object> {
    if (request.volumeId === "") requests.mustVolumeIdField("");
    requests.checkMaps({ secrets: request.secrets });
    const secrets = requests.parseSecrets(request.secrets);
    const { volumeId } = request;
    // No volume was ever made with an id of another form.
    if (!isVolumeId(volumeId)) return {};
    return this.#lock.run(volumeId, "DeleteVolume", async () => {
      const located = await this.#locate(volumeId, secrets);
      await located?.catalog.delete(volumeId);
      return {};
    });
  }

  async publishVolume(
    request: messages.ControllerPublishVolumeRequest,
  ): Promise<messages.ControllerPublishVolumeResponse> {
    const volumeId = requests.mustVolumeIdField(request.volumeId);
    const nodeId = requests.mustNodeId(request.nodeId);
    const capability = requests.mustServeCapability(request.volumeCapability);
    requests.checkMaps({ secrets: request.secrets, volume_context: request.volumeContext });
    const secrets = requests.parseSecrets(request.secrets);
    const readOnly = request.readonly || capability.readOnly;
    return this.#lock.run(volumeId, "ControllerPublishVolume", async () => {
      const { catalog, location } = await this.#mustLocate(volumeId, secrets);
      const meta = await catalog.get(volumeId);
      if (meta === undefined) throw noSuchVolume(volumeId);
      checkFileSystem(meta, capability);
      if (!(await this.#options.isKnownNode(nodeId))) {
        throw new OperationError("not-found", "no such node: its node service registers it when it starts", {
          context: { nodeId },
        });
      }
      const publication = await catalog.publish(volumeId, nodeId, readOnly);
      const fsType = meta.fsType === undefined ? undefined : (meta.fsType as FileSystemType);
      const { durability } = meta;
      return {
        publishContext: encodePublishContext({
          publication: publication.number,
          readOnly,
          durability,
          location,
          fsType,
        }),
      };
    });
  }

  async unpublishVolume(request: messages.ControllerUnpublishVolumeRequest): Promise<object> {
    if (request.volumeId === "") requests.mustVolumeIdField("");
    if (request.nodeId !== "") requests.mustNodeId(request.nodeId);
    requests.checkMaps({ secrets: request.secrets });
    const secrets = requests.parseSecrets(request.secrets);
    const { volumeId, nodeId } = request;
    if (!isVolumeId(volumeId)) return {};
    return this.#lock.run(volumeId, "ControllerUnpublishVolume", async () => {
      const located = await this.#locate(volumeId, secrets);
      await located?.catalog.unpublish(volumeId, nodeId);
      return {};
    });
  }

  async validate(
    request: messages.ValidateVolumeCapabilitiesRequest,
  ): Promise<messages.ValidateVolumeCapabilitiesResponse> {
    const volumeId = requests.mustVolumeIdField(request.volumeId);
    const { volumeContext, volumeCapabilities, parameters } = request;
    requests.checkCapabilitiesPresent(volumeCapabilities);
    requests.checkMaps({ secrets: request.secrets, volume_context: volumeContext, parameters });
    const { catalog, location } = await this.#mustLocate(volumeId, requests.parseSecrets(request.secrets));
    const meta = await catalog.get(volumeId);
    if (meta === undefined) throw noSuchVolume(volumeId);
    try {
      for (const capability of requests.mustServeCapabilities(volumeCapabilities)) checkFileSystem(meta, capability);
      checkContext(meta, location, volumeContext);
      checkParameters(meta, location, parameters);
      checkNoMutableParameters(request.mutableParameters);
    } catch (error) {
      if (isKind(error, "invalid", "conflict")) return { message: error.message };
      throw error;
    }
    return { confirmed: { volumeContext, volumeCapabilities, parameters } };
  }

  #ownCatalog(): Promise<VolumeCatalog> {
    return this.#options.catalogFor(undefined, {});
  }

  /** Undefined where the id names a location that nobody registered. */
  async #locate(volumeId: VolumeId, secrets: Record<string, string>): Promise<LocatedCatalog | undefined> {
    const hash = getLocationHash(volumeId);
    if (hash === undefined) {
      return { catalog: await this.#options.catalogFor(undefined, secrets), location: undefined };
    }
    const location = await (await this.#ownCatalog()).getLocation(hash);
    if (location === undefined) return undefined;
    return { catalog: await this.#options.catalogFor(location, secrets), location };
  }

  async #mustLocate(volumeId: VolumeId, secrets: Record<string, string>): Promise<LocatedCatalog> {
    const located = await this.#locate(volumeId, secrets);
    if (located === undefined) throw noSuchVolume(volumeId);
    return located;
  }
}

function parseCreateVolume(request: messages.CreateVolumeRequest): WantedVolume {
  const name = requests.mustVolumeName(request.name);
  const served = requests.mustServeCapabilities(request.volumeCapabilities);
  requests.checkMaps({ parameters: request.parameters, secrets: request.secrets });
  if (request.volumeContentSource !== null) {
    throw new OperationError(
      "invalid",
      "volumes cannot be made from snapshots or other volumes yet: make an empty one and copy the data",
    );
  }
  checkNoMutableParameters(request.mutableParameters);
  const parameters = parseParameters(request.parameters);
  const fsType = wantedFileSystem(served, parameters);
  const minBytes = fsType === undefined ? MIN_VOLUME_BYTES : minVolumeBytes(fsType);
  const labels = Object.fromEntries(
    Object.entries(request.parameters).filter(([key]) => key.startsWith("csi.storage.k8s.io/pv")),
  );
  return { name, capacity: requests.resolveCapacity(request.capacityRange, minBytes), parameters, fsType, labels };
}

function checkNoMutableParameters(parameters: messages.TextMap): void {
  const [key] = Object.keys(parameters);
  if (key === undefined) return;
  throw new OperationError("invalid", "no parameter of a volume can be changed: use no VolumeAttributesClass", {
    context: { parameter: JSON.stringify(key.slice(0, 64)) },
  });
}

/** The one filesystem type that capabilities and parameters ask for; undefined for a volume that is only a device. */
function wantedFileSystem(
  capabilitiesServed: readonly requests.ServedCapability[],
  parameters: VolumeParameters,
): FileSystemType | undefined {
  const mounts = capabilitiesServed.filter((capability) => capability.access === "mount");
  if (mounts.length === 0) return undefined;
  const types = new Set(mounts.map((mount) => mount.fsType ?? parameters.fsType ?? "ext4"));
  if (parameters.fsType !== undefined) types.add(parameters.fsType);
  if (types.size > 1) {
    throw new OperationError("invalid", "more than one filesystem type is asked for: give one", {
      context: { fsTypes: [...types].join(",") },
    });
  }
  return [...types][0];
}

function minVolumeBytes(fsType: FileSystemType): number {
  const bytes = MIN_FILE_SYSTEM_BYTES[fsType] + RESERVED_BYTES;
  return Math.max(MIN_VOLUME_BYTES, Math.ceil(bytes / BLOCK_BYTES) * BLOCK_BYTES);
}

/** Makes the volume, or answers the existing one where it is what is wanted; "conflict" naming what differs. */
async function createOrFind(catalog: VolumeCatalog, id: VolumeId, wanted: WantedVolume): Promise<VolumeMeta> {
  const existing = await catalog.get(id);
  if (existing !== undefined) return mustFit(existing, wanted);
  const { durability, blockSizeBytes } = wanted.parameters;
  const { name, fsType, labels } = wanted;
  const spec = { id, name, durability, blockSizeBytes, fsType, parameters: labels };
  try {
    return await catalog.create({ ...spec, sizeBytes: wanted.capacity.sizeBytes });
  } catch (error) {
    // Another replica was first, with another size of the same range perhaps.
    const winner = isKind(error, "conflict") ? await catalog.get(id) : undefined;
    if (winner === undefined) throw error;
    return mustFit(winner, wanted);
  }
}

function mustFit(meta: VolumeMeta, wanted: WantedVolume): VolumeMeta {
  const { capacity, parameters } = wanted;
  const fitsSize = meta.sizeBytes >= capacity.leastBytes && meta.sizeBytes <= capacity.mostBytes;
  const differing = [
    fitsSize ? "" : "size",
    meta.durability === parameters.durability ? "" : "durability",
    meta.blockSizeBytes === parameters.blockSizeBytes ? "" : "block size",
    meta.fsType === wanted.fsType ? "" : "filesystem type",
  ].find((field) => field !== "");
  if (differing === undefined) return meta;
  throw new OperationError("conflict", `a volume of this name exists with another ${differing}: use another name`, {
    context: { volumeId: meta.id, sizeBytes: meta.sizeBytes },
  });
}

function checkFileSystem(meta: VolumeMeta, capability: requests.ServedCapability): void {
  const { fsType } = capability;
  if (fsType === undefined || meta.fsType === undefined || fsType === meta.fsType) return;
  throw new OperationError("invalid", "the volume was made for another filesystem type", {
    context: { volumeId: meta.id, fsType: meta.fsType, wanted: fsType },
  });
}

function checkContext(meta: VolumeMeta, location: LocationRecord | undefined, context: messages.TextMap): void {
  const own = volumeMessage(meta, location).volumeContext;
  for (const [key, value] of Object.entries(context)) {
    if (key.startsWith("csi.storage.k8s.io/") || key.startsWith("storage.kubernetes.io/") || own[key] === value)
      continue;
    throw new OperationError("invalid", "volume_context is not that of the volume", {
      context: { key: JSON.stringify(key.slice(0, 64)) },
    });
  }
}

function checkParameters(meta: VolumeMeta, location: LocationRecord | undefined, parameters: messages.TextMap): void {
  if (Object.keys(parameters).length === 0) return;
  const parsed = parseParameters(parameters);
  const same =
    JSON.stringify(locationContext(parsed.location)) === JSON.stringify(locationContext(location)) &&
    parsed.durability === meta.durability &&
    parsed.blockSizeBytes === meta.blockSizeBytes &&
    (parsed.fsType === undefined || meta.fsType === undefined || parsed.fsType === meta.fsType);
  if (!same) throw new OperationError("invalid", "the volume was made with other parameters");
}

function noSuchVolume(volumeId: string): OperationError {
  return new OperationError("not-found", "no such volume", { context: { volumeId } });
}
