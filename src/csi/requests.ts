/**
 * The doorway of CSI: what a request must look like before anything is done with it. Sizes of strings and maps are
 * bounded as the specification bounds them; everything that is wrong is "invalid" (INVALID_ARGUMENT) with the name of
 * the field as it stands in csi.proto. Behind the doorway values are trusted.
 * Values are repeated in messages only where they cannot be secrets: never of secrets, maps and mount flags.
 */
import { OperationError } from "../base/errors.ts";
import { checkMountOptions, type FileSystemType, mustFileSystemType } from "../host/filesystem.ts";
import { BLOCK_BYTES, MAX_VOLUME_BYTES, mustVolumeId, type VolumeId } from "../volume/identity.ts";
import type { CapacityRange, TextMap, VolumeCapability } from "./messages.ts";
import { outOfRange } from "./status.ts";

const maxMapBytes = 4096;
const maxNodeIdBytes = 256;
const maxNameLength = 128;
const maxPathBytes = 4095;
export const DEFAULT_VOLUME_BYTES = 1024 ** 3;

/** Control characters that the specification bans from names: all but tab, newline and carriage return. */
const bannedInNames = /[^\P{Cc}\t\n\r]/u;
const controlCharacter = /\p{Cc}/u;

const singleNodeModes = {
  SINGLE_NODE_WRITER: { readOnly: false, singleTarget: true },
  SINGLE_NODE_READER_ONLY: { readOnly: true, singleTarget: false },
  SINGLE_NODE_SINGLE_WRITER: { readOnly: false, singleTarget: true },
  SINGLE_NODE_MULTI_WRITER: { readOnly: false, singleTarget: false },
} as const;

/** A capability that this driver serves. */
export interface ServedCapability {
  access: "mount" | "block";
  /** Undefined where the caller leaves it open, and for block. */
  fsType: FileSystemType | undefined;
  mountOptions: readonly string[];
  readOnly: boolean;
  /** At most one target path at a time. */
  singleTarget: boolean;
}

export function mustVolumeIdField(volumeId: string): VolumeId {
  if (volumeId === "") throw missing("volume_id");
  return mustVolumeId(volumeId);
}

/** A node's id; the kubelet's idea of a name, so anything printable of at most 256 bytes. */
export function mustNodeId(nodeId: string): string {
  if (nodeId === "") throw missing("node_id");
  if (Buffer.byteLength(nodeId) > maxNodeIdBytes || controlCharacter.test(nodeId)) {
    throw new OperationError("invalid", "node_id must be at most 256 bytes without control characters");
  }
  return nodeId;
}

/** The name of a new volume: any text of at most 128 characters that the specification allows. */
export function mustVolumeName(name: string): string {
  if (name === "") throw missing("name");
  if (Array.from(name).length > maxNameLength || bannedInNames.test(name) || !name.isWellFormed()) {
    throw new OperationError("invalid", "name must be at most 128 characters without control characters");
  }
  return name;
}

/** Throws where a map is larger than the specification allows. */
export function checkMaps(maps: Readonly<Record<string, TextMap>>): void {
  for (const [field, map] of Object.entries(maps)) {
    const bytes = Object.entries(map).reduce((sum, [key, value]) => sum + Buffer.byteLength(key + value), 0);
    if (bytes > maxMapBytes) {
      throw new OperationError("invalid", `${field} is larger than 4096 bytes`, { context: { field, bytes } });
    }
  }
}

/** Access keys for the store; empty where the request brings none. Other keys of the Secret are left alone. */
export function parseSecrets(secrets: TextMap): Record<string, string> {
  const known: Record<string, string> = {};
  for (const key of ["accessKeyId", "secretAccessKey", "sessionToken"]) {
    const value = Object.hasOwn(secrets, key) ? secrets[key] : "";
    if (controlCharacter.test(value)) {
      throw new OperationError("invalid", "a secret holds control characters: is there a newline at its end?", {
        context: { key },
      });
    }
    if (value !== "") known[key] = value;
  }
  if ((known.accessKeyId === undefined) !== (known.secretAccessKey === undefined)) {
    throw new OperationError("invalid", "the secret must hold accessKeyId and secretAccessKey, both or neither");
  }
  return known;
}

/** An absolute, plain path; without a slash at its end. */
export function mustPath(field: string, path: string): string {
  if (path === "") throw missing(field);
  const plain = path.length > 1 ? path.replace(/\/$/, "") : path;
  const parts = plain.split("/").slice(1);
  const isPlain = plain.startsWith("/") && parts.every((part) => part !== "" && part !== "." && part !== "..");
  if (!isPlain || controlCharacter.test(plain) || Buffer.byteLength(plain) > maxPathBytes) {
    throw new OperationError("invalid", `${field} must be an absolute path without "..", "." and control characters`);
  }
  return plain;
}

/** Throws "invalid" where a capability is missing, malformed or not served. */
export function mustServeCapability(capability: VolumeCapability | null): ServedCapability {
  if (capability === null) throw missing("volume_capability");
  if (capability.accessType === undefined) throw missing("volume_capability.access_type");
  const mode = capability.accessMode?.mode ?? "UNKNOWN";
  if (mode === "UNKNOWN") throw missing("volume_capability.access_mode");
  const served = Object.entries(singleNodeModes).find(([name]) => name === mode)?.[1];
  if (served === undefined) {
    throw new OperationError(
      "invalid",
      "a volume can be used from one node at a time: ask for an access mode of a single node (ReadWriteOnce)",
      { context: { accessMode: String(mode) } },
    );
  }
  if (capability.accessType === "block") {
    return { access: "block", fsType: undefined, mountOptions: [], ...served };
  }
  const mount = capability.mount ?? { fsType: "", mountFlags: [], volumeMountGroup: "" };
  if (mount.volumeMountGroup !== "") {
    throw new OperationError("invalid", "volume_mount_group is not served: use fsGroup with fsGroupPolicy File");
  }
  const fsType = mount.fsType === "" ? undefined : mustFileSystemType(mount.fsType);
  checkMountOptions(fsType ?? mustFileSystemType(""), mount.mountFlags);
  return { access: "mount", fsType, mountOptions: mount.mountFlags, ...served };
}

/** All capabilities, at least one. */
export function mustServeCapabilities(capabilities: readonly VolumeCapability[]): ServedCapability[] {
  if (capabilities.length === 0) throw missing("volume_capabilities");
  return capabilities.map(mustServeCapability);
}

/** Structure alone, for calls that answer "not supported" in another way than by an error. */
export function checkCapabilitiesPresent(capabilities: readonly VolumeCapability[]): void {
  if (capabilities.length === 0) throw missing("volume_capabilities");
  for (const capability of capabilities) {
    if (capability.accessType === undefined) throw missing("volume_capability.access_type");
    if ((capability.accessMode?.mode ?? "UNKNOWN") === "UNKNOWN") throw missing("volume_capability.access_mode");
  }
}

export interface WantedCapacity {
  /** What a new volume gets: a multiple of 4096. */
  sizeBytes: number;
  /** What an existing one may have, inclusive. */
  leastBytes: number;
  mostBytes: number;
}

/**
 * The size for a range: what is required, rounded up to a block and to `minBytes`; without a requirement 1 GiB, or
 * the limit where that is less. OUT_OF_RANGE where no size fits.
 */
export function resolveCapacity(range: CapacityRange | null, minBytes: number): WantedCapacity {
  const required = parseBytes("required_bytes", range?.requiredBytes ?? "0");
  const limit = parseBytes("limit_bytes", range?.limitBytes ?? "0");
  if (limit !== 0n && required > limit) {
    throw new OperationError("invalid", "capacity_range.required_bytes is larger than limit_bytes");
  }
  const blockBytes = BigInt(BLOCK_BYTES);
  const least = BigInt(minBytes);
  const most = limit === 0n || limit > BigInt(MAX_VOLUME_BYTES) ? BigInt(MAX_VOLUME_BYTES) : limit;
  const preferred = required === 0n ? min(BigInt(DEFAULT_VOLUME_BYTES), (most / blockBytes) * blockBytes) : required;
  const size = ((max(preferred, least) + blockBytes - 1n) / blockBytes) * blockBytes;
  if (size > most) {
    throw outOfRange("no size of this range is possible: ask for one within the limits, a multiple of 4096 bytes", {
      requiredBytes: String(required),
      limitBytes: String(limit),
      minBytes,
      maxBytes: MAX_VOLUME_BYTES,
    });
  }
  return { sizeBytes: Number(size), leastBytes: Number(required), mostBytes: Number(most) };
}

function parseBytes(field: string, text: string): bigint {
  const value = BigInt(text);
  if (value >= 0n) return value;
  throw new OperationError("invalid", `capacity_range.${field} must not be negative`, { context: { [field]: text } });
}

function min(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}

function max(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}

function missing(field: string): OperationError {
  return new OperationError("invalid", "a required field is missing", { context: { field } });
}
