/**
 * The Node service: devices and mounts of one node. It remembers nothing: what is staged or published is read from
 * mountinfo, /sys and the data plane each time, so that it may die and start again at any moment.
 *
 *   NodeStage     attach (data plane) → device → filesystem (staged-filesystem.ts) → mounted at the staging path;
 *                 a volume that is used as a device is attached and no more
 *   NodePublish   bind mount of the staging path, or of the device onto a file, at the target path
 *   NodeUnpublish, NodeUnstage undo that from the outside in, in whatever state they find it
 *
 * Calls on one volume exclude each other. No path or option reaches a program that requests.ts, node-paths.ts and
 * host/filesystem.ts have not let through.
 */
import { statfs } from "node:fs/promises";
import { status as code } from "@grpc/grpc-js";
import type { Attachment, DataPlane } from "../attachment/data-plane.ts";
import { assert } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import { isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import {
  type DeviceNumber,
  getDeviceNumber,
  isDeviceClaimed,
  isSameDevice,
  mustDevicePath,
  waitForDevice,
} from "../host/block-device.ts";
import { DEFAULT_FILE_SYSTEM } from "../host/filesystem.ts";
import { bindMount, listMounts, mountAt, type MountEntry, unmount } from "../host/mount.ts";
import type { VolumeId } from "../volume/identity.ts";
import type { Handlers } from "./grpc-server.ts";
import type * as messages from "./messages.ts";
import { makeMountDirectory, makeMountFile, NodePaths, pathExists, removeTarget } from "./node-paths.ts";
import { type MountedForPublishing, type MountedForStaging, publishTable, stagingTable } from "./mount-tables.ts";
import { OperationLock } from "./operation-lock.ts";
import { decodePublishContext, type PublishContext } from "./publish-context.ts";
import * as requests from "./requests.ts";
import { mountVolume } from "./staged-filesystem.ts";
import { CsiError } from "./status.ts";

const deviceTimeoutMs = 15_000;

export interface NodeOptions {
  nodeId: string;
  maxVolumesPerNode: number;
  /** The kubelet's directory: every path of a request lies below it. */
  kubeletDir: string;
  dataPlane: DataPlane;
  clock: Clock;
  log: Log;
}

const capabilities = ["STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "SINGLE_NODE_MULTI_WRITER"] as const;

interface Device {
  path: string;
  number: DeviceNumber;
}

export class NodeService {
  readonly #options: NodeOptions;
  readonly #paths: NodePaths;
  readonly #lock = new OperationLock();

  constructor(options: NodeOptions) {
    this.#options = options;
    this.#paths = new NodePaths(options.kubeletDir);
  }

  handlers(): Handlers {
    const { nodeId, maxVolumesPerNode } = this.#options;
    return {
      nodeGetCapabilities: async () => ({ capabilities: capabilities.map((type) => ({ rpc: { type } })) }),
      nodeGetInfo: async () => ({ nodeId, maxVolumesPerNode: String(maxVolumesPerNode) }),
      nodeStageVolume: (request: messages.NodeStageVolumeRequest) => this.stage(request),
      nodeUnstageVolume: (request: messages.NodeUnstageVolumeRequest) => this.unstage(request),
      nodePublishVolume: (request: messages.NodePublishVolumeRequest) => this.publish(request),
      nodeUnpublishVolume: (request: messages.NodeUnpublishVolumeRequest) => this.unpublish(request),
      nodeGetVolumeStats: (request: messages.NodeGetVolumeStatsRequest) => this.getStats(request),
    };
  }

  async stage(request: messages.NodeStageVolumeRequest): Promise<object> {
    const volumeId = requests.mustVolumeIdField(request.volumeId);
    const requestedPath = requests.mustPath("staging_target_path", request.stagingTargetPath);
    const capability = requests.mustServeCapability(request.volumeCapability);
    const { secrets, publishContext, volumeContext } = request;
    requests.checkMaps({ secrets, publish_context: publishContext, volume_context: volumeContext });
    const context = decodePublishContext(publishContext);
    const storeSecrets = requests.parseSecrets(secrets);
    return this.#lock.run(volumeId, "NodeStageVolume", async () => {
      const path = await this.#paths.mustResolve(requestedPath);
      const attachment = await this.#attach(volumeId, context, storeSecrets);
      const device = await this.#mustDevice(attachment);
      if (capability.access === "block") mustNotBeMounted(await listMounts(), device);
      else await this.#stageFileSystem({ attachment, device, path, capability, context });
      return {};
    });
  }

  async unstage(request: messages.NodeUnstageVolumeRequest): Promise<object> {
    const volumeId = requests.mustVolumeIdField(request.volumeId);
    const requestedPath = requests.mustPath("staging_target_path", request.stagingTargetPath);
    return this.#lock.run(volumeId, "NodeUnstageVolume", async () => {
      const path = await this.#paths.resolve(requestedPath);
      const attachment = await this.#options.dataPlane.getAttachment(volumeId);
      const device = attachment === undefined ? undefined : await getDevice(attachment);
      if (device !== undefined) mustBeUnpublished(await listMounts(), device, path);
      if (path !== undefined) await unmount(path);
      if (device !== undefined && (await isDeviceClaimed(device.path))) {
        throw new OperationError("busy", "the filesystem is still mounted in another mount namespace: retry", {
          context: { volumeId, device: device.path },
        });
      }
      await this.#options.dataPlane.detach(volumeId);
      return {};
    });
  }

  async publish(request: messages.NodePublishVolumeRequest): Promise<object> {
    const volumeId = requests.mustVolumeIdField(request.volumeId);
    const requestedTarget = requests.mustPath("target_path", request.targetPath);
    const capability = requests.mustServeCapability(request.volumeCapability);
    const { secrets, publishContext, volumeContext } = request;
    requests.checkMaps({ secrets, publish_context: publishContext, volume_context: volumeContext });
    if (request.stagingTargetPath === "") throw notStaged(volumeId, "staging_target_path is missing");
    const requestedStaging = requests.mustPath("staging_target_path", request.stagingTargetPath);
    return this.#lock.run(volumeId, "NodePublishVolume", async () => {
      const attachment = await this.#options.dataPlane.getAttachment(volumeId);
      const device = attachment === undefined ? undefined : await getDevice(attachment);
      if (attachment === undefined || device === undefined) throw notStaged(volumeId, "the volume is not attached");
      mustServe(attachment);
      const staging = await this.#paths.resolve(requestedStaging);
      const target = await this.#paths.mustResolve(requestedTarget);
      const readOnly = request.readonly || capability.readOnly || attachment.readOnly;
      if (readOnly && !attachment.readOnly && capability.access === "block") {
        throw new CsiError(
          code.FAILED_PRECONDITION,
          "in-use",
          "a device cannot be read-only for one pod alone: publish the volume to the node read-only",
          { volumeId },
        );
      }
      const publication = { volumeId, device, staging, target, readOnly, singleTarget: capability.singleTarget };
      await (capability.access === "block" ? publishDevice(publication) : publishFileSystem(publication));
      return {};
    });
  }

  async unpublish(request: messages.NodeUnpublishVolumeRequest): Promise<object> {
    const volumeId = requests.mustVolumeIdField(request.volumeId);
    const requestedTarget = requests.mustPath("target_path", request.targetPath);
    return this.#lock.run(volumeId, "NodeUnpublishVolume", async () => {
      const target = await this.#paths.resolve(requestedTarget);
      if (target === undefined) return {};
      await unmount(target);
      await removeTarget(target);
      return {};
    });
  }

  async getStats(request: messages.NodeGetVolumeStatsRequest): Promise<messages.NodeGetVolumeStatsResponse> {
    const volumeId = requests.mustVolumeIdField(request.volumeId);
    const path = await this.#resolveVolumePath(request.volumePath);
    const attachment = await this.#options.dataPlane.getAttachment(volumeId);
    const device = attachment === undefined ? undefined : await getDevice(attachment);
    if (path === undefined || attachment === undefined || device === undefined || !(await pathExists(path))) {
      throw new OperationError("not-found", "no such volume at this path", { context: { volumeId } });
    }
    const mount = mountAt(await listMounts(), path);
    if (mount !== undefined && isSameDevice(mount, device.number)) return { usage: await fileSystemUsage(path) };
    if (mount !== undefined && isBoundDevice(mount, device)) {
      return { usage: [{ unit: "BYTES", total: String(attachment.sizeBytes) }] };
    }
    throw new OperationError("not-found", "the volume is not mounted at this path", { context: { volumeId } });
  }

  /** Undefined where nothing can be: for this call also a path that is none. */
  async #resolveVolumePath(path: string): Promise<string | undefined> {
    try {
      return await this.#paths.resolve(requests.mustPath("volume_path", path));
    } catch (error) {
      if (path !== "" && isKind(error, "invalid")) return undefined;
      throw error;
    }
  }

  async #attach(volumeId: VolumeId, context: PublishContext, secrets: Record<string, string>): Promise<Attachment> {
    const { location, readOnly, durability, publication } = context;
    const attachment = await this.#options.dataPlane.attach({
      volumeId,
      location,
      secrets,
      readOnly,
      durability,
      publication,
    });
    mustServe(attachment);
    return attachment;
  }

  async #mustDevice(attachment: Attachment): Promise<Device> {
    const path = mustDevicePath(attachment.devicePath);
    const { clock } = this.#options;
    const number = await waitForDevice(path, { sizeBytes: attachment.sizeBytes, timeoutMs: deviceTimeoutMs, clock });
    return { path, number };
  }

  async #stageFileSystem(staging: {
    attachment: Attachment;
    device: Device;
    path: string;
    capability: requests.ServedCapability;
    context: PublishContext;
  }): Promise<void> {
    const { attachment, device, path, capability, context } = staging;
    const type = capability.fsType ?? context.fsType ?? DEFAULT_FILE_SYSTEM;
    const { volumeId, readOnly, sizeBytes, neverWritten } = attachment;
    const mounts = await listMounts();
    const bound = mounts.find((mount) => isBoundDevice(mount, device));
    const mounted = mountAt(mounts, path);
    const { action, name } = stagingTable.decide({
      mounted: await this.#mountedForStaging(mounted, device, { type, readOnly }),
      volume: bound === undefined ? "free" : "used as a device",
    });
    const found = { volumeId, path: bound?.mountPoint ?? path, type };
    if (action === "done") return;
    if (action === "refuse") throw conflict(name, found);
    if (action === "unstage first") throw new CsiError(code.FAILED_PRECONDITION, "in-use", name, found);
    if (action === "replace") {
      this.#options.log.warn(`unmounting ${name} at the staging path`, { volumeId, path, source: mounted?.source });
      await unmount(path);
    }
    await makeMountDirectory(path);
    const log = this.#options.log.child({ volumeId, operation: "NodeStageVolume" });
    const { mountOptions } = capability;
    await mountVolume(
      { volumeId, device: device.path, sizeBytes, type, readOnly, neverWritten, mountOptions },
      path,
      log,
    );
  }

  async #mountedForStaging(
    mounted: MountEntry | undefined,
    device: Device,
    wanted: { type: string; readOnly: boolean },
  ): Promise<MountedForStaging> {
    if (mounted === undefined) return "nothing";
    if (isSameDevice(mounted, device.number)) return ownMount(mounted, wanted);
    for (const other of await this.#options.dataPlane.listAttachments()) {
      const number = (await getDevice(other))?.number;
      if (number !== undefined && isSameDevice(mounted, number)) return "another volume";
    }
    return "a lost device";
  }
}

interface NodePublication {
  volumeId: VolumeId;
  device: Device;
  /** Undefined where the path leads nowhere. */
  staging: string | undefined;
  target: string;
  readOnly: boolean;
  singleTarget: boolean;
}

async function publishFileSystem(publication: NodePublication): Promise<void> {
  const { device, staging, target, readOnly } = publication;
  const mounts = await listMounts();
  const staged = staging === undefined ? undefined : mountAt(mounts, staging);
  const isStaged = staged !== undefined && isSameDevice(staged, device.number);
  const existing = mountAt(mounts, target);
  const isNeeded = mustPublish(publication, {
    volume: isStaged ? "staged" : "not staged",
    existing,
    isOurs: existing !== undefined && isSameDevice(existing, device.number),
    others: mounts.filter((mount) => isTargetOf(mount, device) && mount.mountPoint !== staging),
  });
  if (!isNeeded) return;
  assert(staging !== undefined, "only what is staged is published");
  await makeMountDirectory(target);
  await bindOrRemove(staging, target, readOnly);
}

async function publishDevice(publication: NodePublication): Promise<void> {
  const { device, target, readOnly } = publication;
  const mounts = await listMounts();
  const existing = mountAt(mounts, target);
  const isNeeded = mustPublish(publication, {
    volume: mounts.some((mount) => isSameDevice(mount, device.number)) ? "used the other way" : "staged",
    existing,
    isOurs: existing !== undefined && isBoundDevice(existing, device),
    others: mounts.filter((mount) => isBoundDevice(mount, device)),
  });
  if (!isNeeded) return;
  await makeMountFile(target);
  await bindOrRemove(device.path, target, readOnly);
}

/** Whether anything is left to bind; throws where publishTable refuses. `others`: where the volume is published. */
function mustPublish(
  publication: NodePublication,
  found: {
    volume: "staged" | "not staged" | "used the other way";
    existing: MountEntry | undefined;
    isOurs: boolean;
    others: readonly MountEntry[];
  },
): boolean {
  const { volumeId, target, readOnly, singleTarget } = publication;
  const { volume, existing, isOurs, others } = found;
  const { action, name } = publishTable.decide({
    volume,
    target: mountedForPublishing(existing, isOurs, readOnly),
    elsewhere: singleTarget && others.length > 0 ? "yes" : "no, or allowed",
  });
  switch (action) {
    case "stage first":
      throw notStaged(volumeId, name);
    case "unpublish first":
      throw new CsiError(code.FAILED_PRECONDITION, "in-use", name, { volumeId, path: others[0].mountPoint });
    case "refuse":
      throw conflict(name, { volumeId, path: target });
    default:
      return action === "bind";
  }
}

function mountedForPublishing(
  existing: MountEntry | undefined,
  isOurs: boolean,
  readOnly: boolean,
): MountedForPublishing {
  if (existing === undefined) return "nothing";
  if (!isOurs) return "something else";
  return existing.options.includes("ro") === readOnly ? "as wanted" : "other access";
}

/** A target without a mount would look like an empty volume: it goes where binding fails. */
async function bindOrRemove(source: string, target: string, readOnly: boolean): Promise<void> {
  try {
    await bindMount(source, target, { readOnly });
  } catch (error) {
    await unmount(target).then(
      () => removeTarget(target),
      () => undefined,
    );
    throw error;
  }
}

/** Where the data plane says the volume is, if the kernel has such a device now. */
async function getDevice(attachment: Attachment): Promise<Device | undefined> {
  if (attachment.devicePath === "") return undefined;
  const path = mustDevicePath(attachment.devicePath);
  const number = await getDeviceNumber(path);
  return number === undefined ? undefined : { path, number };
}

/** True for a mount of the device's filesystem as a whole: subPath mounts of the kubelet are parts of it. */
function isTargetOf(mount: MountEntry, device: Device): boolean {
  return isSameDevice(mount, device.number) && mount.root === "/" && !mount.mountPoint.includes("/volume-subpaths/");
}

/** True where the device's node in /dev is bound to a file. */
function isBoundDevice(mount: MountEntry, device: Device): boolean {
  const isDevices = mount.fileSystem === "devtmpfs" || mount.fileSystem === "tmpfs";
  return isDevices && mount.mountPoint !== device.path && `/dev${mount.root}` === device.path;
}

function mustServe(attachment: Attachment): void {
  if (attachment.state === "attached") return;
  const { volumeId, state, failure } = attachment;
  if (state === "failed") {
    throw new OperationError("fenced", `the volume failed on this node: unstage it, then stage it again: ${failure}`, {
      context: { volumeId },
    });
  }
  throw new OperationError("busy", "the volume is being attached or detached: retry", { context: { volumeId, state } });
}

/** How the volume itself is mounted at its staging path. */
function ownMount(mounted: MountEntry, wanted: { type: string; readOnly: boolean }): MountedForStaging {
  if (mounted.fileSystem !== wanted.type) return "another type";
  if (mounted.options.includes("ro") !== wanted.readOnly) return "other access";
  return !wanted.readOnly && mounted.superOptions.includes("ro") ? "gone read-only" : "as wanted";
}

function mustNotBeMounted(mounts: readonly MountEntry[], device: Device): void {
  const mounted = mounts.find((mount) => isSameDevice(mount, device.number));
  if (mounted !== undefined) throw conflict("the volume is in use with a filesystem", { path: mounted.mountPoint });
}

/** Before a device goes, nobody may use it any more: not by a mount of its filesystem, not by its node. */
function mustBeUnpublished(mounts: readonly MountEntry[], device: Device, staging: string | undefined): void {
  const users = mounts.filter((mount) => isSameDevice(mount, device.number) || isBoundDevice(mount, device));
  const user = users.find((mount) => mount.mountPoint !== staging);
  if (user === undefined) return;
  throw new CsiError(code.FAILED_PRECONDITION, "in-use", "the volume is still published: unpublish it first", {
    path: user.mountPoint,
  });
}

async function fileSystemUsage(path: string): Promise<messages.VolumeUsage[]> {
  const figures = await statfs(path, { bigint: true });
  const bytes = (blocks: bigint): string => String(blocks * figures.bsize);
  return [
    {
      unit: "BYTES",
      total: bytes(figures.blocks),
      available: bytes(figures.bavail),
      used: bytes(figures.blocks - figures.bfree),
    },
    {
      unit: "INODES",
      total: String(figures.files),
      available: String(figures.ffree),
      used: String(figures.files - figures.ffree),
    },
  ];
}

function notStaged(volumeId: string, reason: string): CsiError {
  return new CsiError(code.FAILED_PRECONDITION, "in-use", `stage the volume before it is published: ${reason}`, {
    volumeId,
  });
}

function conflict(message: string, context: Record<string, string>): OperationError {
  return new OperationError("conflict", message, { context });
}
