/** A segment as readers need it: where it is, who it is, and what its frames' checksums start from. */
import { segmentFrameSeed } from "./format/frame.ts";
import type { Epoch, SegmentSeq, VolumeUid } from "./identity.ts";
import { segmentKey } from "./keys.ts";
import type { StoredObject } from "./segment-reader.ts";

export interface StoredSegment extends StoredObject {
  /** Of every frame: see segmentFrameSeed. */
  readonly seed: number;
  /** Of this object of the process and no other: from 1 on. */
  readonly number: number;
}

let count = 0;

export function storedSegment(uid: VolumeUid, epoch: number, sequence: number): StoredSegment {
  const key = segmentKey(uid, epoch as Epoch, sequence as SegmentSeq);
  count += 1;
  return { uid, epoch, sequence, kind: "segment", key, seed: segmentFrameSeed(uid, epoch, sequence), number: count };
}
