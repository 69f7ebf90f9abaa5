/**
 * The filesystem of a volume at its staging path: made where the volume is empty, checked, mounted.
 *
 * It must never format what may hold data. What allows it is the engine's word that no block was ever written, or the
 * marker of a mkfs of ours that did not end (host/format-marker.ts); blkid's word alone never does:
 *
 *   never written   marker   found by blkid      then
 *   yes             –        nothing             mark, make, unmark, mount
 *   yes             –        anything            refuse: the volume's own records are wrong
 *   no              yes      (not asked)         trim, make, unmark, mount: nobody ever mounted it
 *   no              no       the wanted type     check, mount
 *   no              no       anything else       refuse: it holds other data
 *   a row that makes, on a read-only device      refuse: nothing to read yet
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

/** The table above; throws for the rows that refuse. */
export function decideFormat(
  content: DeviceContent,
  wanted: { type: FileSystemType; readOnly: boolean },
): FormatDecision {
  const { neverWritten, hasMarker, signature } = content;
  if (neverWritten && signature !== undefined) {
    throw new OperationError("corrupt", "a volume that was never written holds data: do not use it, look into it", {
      context: { signature },
    });
  }
  const decision = neverWritten ? "make" : hasMarker ? "make again" : "use";
  if (decision === "use") {
    if (signature === wanted.type) return decision;
    throw refused("the volume holds other data than the wanted filesystem and is not formatted: use another volume", {
      wanted: wanted.type,
      found: signature ?? "data without a signature",
    });
  }
  if (!wanted.readOnly) return decision;
  throw refused("the volume has no filesystem yet: publish it for writing once", { wanted: wanted.type });
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

function refused(message: string, context: Record<string, string>): CsiError {
  return new CsiError(code.FAILED_PRECONDITION, "in-use", message, context);
}
