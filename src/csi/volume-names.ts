/**
 * Volume ids as CSI sees them. An id is derived from the name that CreateVolume brings, so that a retry finds the
 * volume instead of making a second one, and it tells where the volume lives, because later calls bring nothing else:
 *   vol-<32 hex digits of SHA-256 of the name>   in the driver's own store
 *   loc-<16 hex digits: the location's hash>-<the same 32>   in a location of its own (a StorageClass's bucket)
 * Ids of another form (volumes made by the command line) live in the driver's own store.
 */
import { createHash } from "node:crypto";
import { mustVolumeId, type VolumeId } from "../volume/identity.ts";

const locatedPattern = /^loc-([0-9a-f]{16})-[0-9a-f]{32}$/;

export function volumeIdOfName(name: string, locationHash: string | undefined): VolumeId {
  const digest = sha256(name).slice(0, 32);
  return mustVolumeId(locationHash === undefined ? `vol-${digest}` : `loc-${locationHash}-${digest}`);
}

/** The hash of the location that the id names; undefined for the driver's own store. */
export function getLocationHash(volumeId: VolumeId): string | undefined {
  return locatedPattern.exec(volumeId)?.[1];
}

function sha256(text: string): string {
  return createHash("sha256").update(text, "utf8").digest("hex");
}
