/** A segment as readers need it: where it is, who it is, and what its frames' checksums start from. */
import { segmentFrameSeed } from "./format/frame.ts";
import type { Epoch, SegmentSeq, VolumeUid } from "./identity.ts";
import { segmentKey } from "./keys.ts";
import type { StoredObject } from "./segment-reader.ts";

export interface StoredSegment extends StoredObject {
  /** Of every frame: see segmentFrameSeed. */
  readonly seed: number;
}

export function storedSegment(uid: VolumeUid, epoch: number, sequence: number): StoredSegment {
  const key = segmentKey(uid, epoch as Epoch, sequence as SegmentSeq);
  return { uid, epoch, sequence, kind: "segment", key, seed: segmentFrameSeed(uid, epoch, sequence) };
}
