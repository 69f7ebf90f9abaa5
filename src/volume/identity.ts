/**
 * The names of a volume, branded so that they cannot be mixed.
 * A VolumeId is what users and CSI say; derived from the claim's name, so it can come back after a deletion.
 * A VolumeUid is drawn at random when the volume is made, and all keys but its metadata are built from it: a late
 * request of a deleted volume's owner can never meet a new volume of the same name.
 * Epoch and SegmentSeq are unsigned 53-bit numbers here; codecs store them as 64 bits.
 */
import { OperationError } from "../base/errors.ts";

export type VolumeId = string & { readonly brand: "VolumeId" };
/** 32 lower-case hex digits: 16 random bytes. */
export type VolumeUid = string & { readonly brand: "VolumeUid" };
/** Number of an ownership: 1, 2, 3 … per volume uid. */
export type Epoch = number & { readonly brand: "Epoch" };
/** Number of a log object within an epoch; 0 is START. */
export type SegmentSeq = number & { readonly brand: "SegmentSeq" };

const volumeIdPattern = /^[a-z0-9][a-z0-9-]{0,62}$/;

/** True where `text` is well-formed; says nothing about existence. */
export function isVolumeId(text: string): text is VolumeId {
  return volumeIdPattern.test(text);
}

/** Throws "invalid" for a malformed id. */
export function mustVolumeId(text: string): VolumeId {
  if (isVolumeId(text)) return text;
  throw new OperationError("invalid", "volume id must be 1 to 63 of a-z, 0-9 and -, and start with a letter or digit", {
    context: { volumeId: JSON.stringify(text.slice(0, 128)) },
  });
}

export type Durability = "s3" | "local";
export const BLOCK_BYTES = 4096;
export const MIN_VOLUME_BYTES = 1024 * 1024;
export const MAX_VOLUME_BYTES = 64 * 1024 ** 4;
