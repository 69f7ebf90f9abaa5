/**
 * Parameters of a StorageClass. All are optional; one that is not known is refused by name, because a misspelt
 * "durability" must not silently become the default.
 *   bucket, prefix, endpoint, region   where the volumes live; without bucket: the driver's own store
 *   durability                         "s3" (default): a flush waits for S3; "local": for the node's disk
 *   fsType                             ext4 (default) or xfs, where the claim has a filesystem
 *   blockSize                          4096 (default) or 512: the device's logical block
 * Keys under "csi.storage.k8s.io/" are Kubernetes' own: its sidecars take them out, or add the claim's name; only the
 * filesystem type among them means something here.
 */
import { OperationError } from "../base/errors.ts";
import { type FileSystemType, mustFileSystemType } from "../host/filesystem.ts";
import type { LocationRecord } from "../volume/format/control-records.ts";
import type { Durability } from "../volume/identity.ts";
import type { TextMap } from "./messages.ts";

export interface VolumeParameters {
  /** Undefined: the driver's own store. */
  location: LocationRecord | undefined;
  durability: Durability;
  /** Undefined: whatever the capability says. */
  fsType: FileSystemType | undefined;
  blockSizeBytes: 512 | 4096;
}

const kubernetesPrefix = "csi.storage.k8s.io/";
const known = ["bucket", "prefix", "endpoint", "region", "durability", "fsType", "blockSize"] as const;
type ParameterName = (typeof known)[number];

const bucketPattern = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/;
const prefixPattern = /^[A-Za-z0-9!_.*'()-]+(\/[A-Za-z0-9!_.*'()-]+)*$/;
const regionPattern = /^[a-z0-9][a-z0-9-]{0,62}$/;
const maxPrefixLength = 256;
const maxEndpointLength = 512;

/** Throws "invalid" for an unknown parameter or a bad value, naming the parameter and what it may be. */
export function parseParameters(parameters: TextMap): VolumeParameters {
  const values = new Map<ParameterName, string>();
  let kubernetesFsType: string | undefined;
  for (const [key, value] of Object.entries(parameters)) {
    const name = known.find((candidate) => candidate === key);
    if (name !== undefined) values.set(name, value);
    else if (key === `${kubernetesPrefix}fstype`) kubernetesFsType = value;
    else if (!key.startsWith(kubernetesPrefix)) {
      throw new OperationError("invalid", `unknown parameter: use only ${known.join(", ")}`, {
        context: { parameter: JSON.stringify(key.slice(0, 64)) },
      });
    }
  }
  return {
    location: parseLocation(values),
    durability: oneOf("durability", values.get("durability") ?? "s3", ["s3", "local"]),
    fsType: parseFileSystem(values.get("fsType"), kubernetesFsType),
    blockSizeBytes: oneOf("blockSize", values.get("blockSize") ?? "4096", ["512", "4096"]) === "512" ? 512 : 4096,
  };
}

/** What the parameters of a location are in a volume's context: the inverse of parseParameters for those. */
export function locationContext(location: LocationRecord | undefined): Record<string, string> {
  if (location === undefined) return {};
  const [, bucket, prefix] = /^s3:\/\/([^/]+)(?:\/(.*))?$/.exec(location.url) ?? [];
  return {
    ...(bucket === undefined ? {} : { bucket }),
    ...(prefix === undefined ? {} : { prefix }),
    ...(location.endpoint === "" ? {} : { endpoint: location.endpoint }),
    ...(location.region === "" ? {} : { region: location.region }),
  };
}

function parseLocation(values: ReadonlyMap<ParameterName, string>): LocationRecord | undefined {
  const bucket = values.get("bucket") ?? "";
  const prefix = (values.get("prefix") ?? "").replace(/^\/|\/$/g, "");
  const endpoint = values.get("endpoint") ?? "";
  const region = values.get("region") ?? "";
  if (bucket === "") {
    const orphan = [prefix === "" ? "" : "prefix", endpoint === "" ? "" : "endpoint", region === "" ? "" : "region"];
    const first = orphan.find((name) => name !== "");
    if (first === undefined) return undefined;
    throw invalid(first, "needs the parameter bucket beside it");
  }
  if (!bucketPattern.test(bucket) || bucket.includes("..")) {
    throw invalid("bucket", "must be 3 to 63 of a-z, 0-9, dot and hyphen");
  }
  if (prefix !== "" && !isPrefix(prefix)) {
    throw invalid("prefix", "must be at most 256 letters, digits and !_.*'()- with single slashes between");
  }
  if (endpoint !== "" && !isEndpoint(endpoint)) {
    throw invalid("endpoint", "must be an http or https URL without user, path and query");
  }
  if (region !== "" && !regionPattern.test(region)) throw invalid("region", "must be letters, digits and hyphens");
  return { url: `s3://${bucket}${prefix === "" ? "" : `/${prefix}`}`, endpoint, region };
}

function isPrefix(prefix: string): boolean {
  const parts = prefix.split("/");
  return (
    prefix.length <= maxPrefixLength && prefixPattern.test(prefix) && !parts.includes("..") && !parts.includes(".")
  );
}

function isEndpoint(text: string): boolean {
  const url = URL.canParse(text) && text.length <= maxEndpointLength ? new URL(text) : undefined;
  if (url === undefined || /[\s\p{Cc}]/u.test(text)) return false;
  const plain = url.username === "" && url.password === "" && url.search === "" && url.hash === "";
  return plain && (url.protocol === "https:" || url.protocol === "http:") && url.pathname === "/";
}

function parseFileSystem(own: string | undefined, kubernetes: string | undefined): FileSystemType | undefined {
  const types = [own, kubernetes]
    .filter((text) => text !== undefined && text !== "")
    .map((text) => mustFileSystemType(text!));
  if (types.length === 2 && types[0] !== types[1]) {
    throw invalid("fsType", `differs from ${kubernetesPrefix}fstype: give one of them`);
  }
  return types[0];
}

function oneOf<const T extends string>(name: ParameterName, value: string, choices: readonly T[]): T {
  const choice = choices.find((candidate) => candidate === value);
  if (choice === undefined) throw invalid(name, `must be ${choices.join(" or ")}`);
  return choice;
}

function invalid(name: string, rule: string): OperationError {
  return new OperationError("invalid", `parameter ${rule}`, { context: { parameter: name } });
}
