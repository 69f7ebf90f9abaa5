/**
 * The filesystem of a volume at its staging path: made where the volume is empty, checked, mounted.
 * What it may do with what the device holds is decided by formatTable (mount-tables.ts) alone.
 */
import { status as code } from "@grpc/grpc-js";
import { isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { discardDevice, flushDevice } from "../host/block-device.ts";
import {
  checkFileSystem,
  fileSystemMountOptions,
  type FileSystemType,
  getSignature,
  makeFileSystem,
} from "../host/filesystem.ts";
import { clearFormatMarker, hasFormatMarker, RESERVED_BYTES, writeFormatMarker } from "../host/format-marker.ts";
import { mountFileSystem } from "../host/mount.ts";
import { formatTable } from "./mount-tables.ts";
import { CsiError } from "./status.ts";

export interface DeviceFileSystem {
  volumeId: string;
  device: string;
  sizeBytes: number;
  type: FileSystemType;
  readOnly: boolean;
  /** The engine's word. */
  neverWritten: boolean;
  mountOptions: readonly string[];
}

/** What is to be seen of a device before it is decided what to do with it. */
export interface DeviceContent {
  neverWritten: boolean;
  hasMarker: boolean;
  /** Undefined: blkid finds nothing. */
  signature: string | undefined;
}

export type FormatDecision = "make" | "make again" | "use";

/** Throws for the rows of formatTable that refuse. */
export function decideFormat(
  content: DeviceContent,
  wanted: { type: FileSystemType; readOnly: boolean },
): FormatDecision {
  const { neverWritten, hasMarker, signature } = content;
  const { action, name } = formatTable.decide({
    content: neverWritten ? "never written" : hasMarker ? "mkfs did not end" : "written",
    signature: signature === undefined ? "nothing" : signature === wanted.type ? "the wanted type" : "anything else",
    access: wanted.readOnly ? "read only" : "write",
  });
  const context = { wanted: wanted.type, found: signature ?? "no signature" };
  if (action === "corrupt") throw new OperationError("corrupt", name, { context });
  if (action === "refuse") throw new CsiError(code.FAILED_PRECONDITION, "in-use", name, context);
  return action;
}

/** Returns with the filesystem mounted at `target`, which is an empty directory. May be repeated after any failure. */
export async function mountVolume(volume: DeviceFileSystem, target: string, log: Log): Promise<void> {
  const decision = decideFormat(await inspect(volume), volume);
  if (decision === "use") {
    if (!volume.readOnly) await checkFileSystem(volume.device, volume.type);
  } else {
    log.info("making a filesystem", {
      fsType: volume.type,
      sizeBytes: volume.sizeBytes,
      again: decision === "make again",
    });
    await format(volume, decision);
  }
  const options = fileSystemMountOptions(volume.type, volume.mountOptions, volume.readOnly);
  try {
    await mountFileSystem({ device: volume.device, target, fileSystem: volume.type, options });
  } catch (error) {
    if (!volume.readOnly || !isKind(error, "unavailable")) throw error;
    // Replaying the journal would write. Mounting without it would show files as they never were.
    const hint = "after an unclean end publish the volume for writing once";
    throw new OperationError("unavailable", `${error.message} (${hint})`, { cause: error });
  }
}

async function inspect(volume: DeviceFileSystem): Promise<DeviceContent> {
  const { device, sizeBytes, volumeId, neverWritten } = volume;
  const hasMarker = !neverWritten && (await hasFormatMarker(device, sizeBytes, volumeId));
  return { neverWritten, hasMarker, signature: hasMarker ? undefined : await getSignature(device) };
}

/** The order is what the decision rests on: the marker is on the device before the first write and after the last. */
async function format(volume: DeviceFileSystem, decision: "make" | "make again"): Promise<void> {
  const { device, sizeBytes, volumeId, type } = volume;
  const fileSystemBytes = sizeBytes - RESERVED_BYTES;
  if (decision === "make") await writeFormatMarker(device, sizeBytes, volumeId);
  else await discardDevice(device, fileSystemBytes);
  await makeFileSystem({ device, type, sizeBytes: fileSystemBytes });
  await flushDevice(device);
  await clearFormatMarker(device, sizeBytes);
}
