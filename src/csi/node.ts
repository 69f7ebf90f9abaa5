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
    if (bound !== undefined) throw conflict("the volume is in use as a device", { volumeId, path: bound.mountPoint });
    const mounted = mountAt(mounts, path);
    if (mounted !== undefined) {
      if (isSameDevice(mounted, device.number)) {
        mustBeStagedSo(mounted, { type, readOnly, volumeId });
        return;
      }
      await this.#unmountStale(mounted, volumeId);
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

  /** A mount of a device that no volume has any more, left by an attachment that was lost, is in the way. */
  async #unmountStale(mounted: MountEntry, volumeId: VolumeId): Promise<void> {
    for (const other of await this.#options.dataPlane.listAttachments()) {
      const device = await getDevice(other);
      if (device === undefined || !isSameDevice(device.number, mounted)) continue;
      throw conflict("another volume is staged at this path", { volumeId, other: other.volumeId });
    }
    this.#options.log.warn("unmounting what an attachment that is gone left at the staging path", {
      volumeId,
      path: mounted.mountPoint,
      source: mounted.source,
    });
    await unmount(mounted.mountPoint);
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
  const { volumeId, device, staging, target, readOnly } = publication;
  const mounts = await listMounts();
  const staged = staging === undefined ? undefined : mountAt(mounts, staging);
  if (staging === undefined || staged === undefined || !isSameDevice(staged, device.number)) {
    throw notStaged(volumeId, "the volume is not mounted at the staging path");
  }
  const existing = mountAt(mounts, target);
  if (existing !== undefined) {
    mustBePublishedSo(isSameDevice(existing, device.number), existing, publication);
    return;
  }
  const others = mounts.filter((mount) => isTargetOf(mount, device) && mount.mountPoint !== staging);
  mustBeOnlyTarget(others, publication);
  await makeMountDirectory(target);
  await bindOrRemove(staging, target, readOnly);
}

async function publishDevice(publication: NodePublication): Promise<void> {
  const { device, target, readOnly } = publication;
  const mounts = await listMounts();
  mustNotBeMounted(mounts, device);
  const existing = mountAt(mounts, target);
  if (existing !== undefined) {
    mustBePublishedSo(isBoundDevice(existing, device), existing, publication);
    return;
  }
  mustBeOnlyTarget(
    mounts.filter((mount) => isBoundDevice(mount, device)),
    publication,
  );
  await makeMountFile(target);
  await bindOrRemove(device.path, target, readOnly);
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

function mustBeStagedSo(mounted: MountEntry, wanted: { type: string; readOnly: boolean; volumeId: string }): void {
  const { volumeId, type, readOnly } = wanted;
  if (mounted.fileSystem !== type) throw conflict("the volume is staged with another filesystem", { volumeId, type });
  if (mounted.options.includes("ro") !== readOnly) {
    throw conflict("the volume is staged with other access", { volumeId, readOnly: String(readOnly) });
  }
  if (!readOnly && mounted.superOptions.includes("ro")) {
    throw new CsiError(
      code.FAILED_PRECONDITION,
      "in-use",
      "the filesystem went read-only after errors of its device: unstage the volume, then stage it again",
      { volumeId },
    );
  }
}

function mustBePublishedSo(isOurs: boolean, existing: MountEntry, publication: NodePublication): void {
  if (isOurs && existing.options.includes("ro") === publication.readOnly) return;
  throw conflict(isOurs ? "the volume is published there with other access" : "something else is mounted there", {
    volumeId: publication.volumeId,
    path: publication.target,
  });
}

function mustBeOnlyTarget(others: readonly MountEntry[], publication: NodePublication): void {
  if (!publication.singleTarget || others.length === 0) return;
  throw new CsiError(
    code.FAILED_PRECONDITION,
    "in-use",
    "the volume has a single writer and is published at another path: unpublish it there first",
    { volumeId: publication.volumeId, path: others[0].mountPoint },
  );
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
