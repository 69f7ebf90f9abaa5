/** What a volume tells about itself, and how it is opened: the shapes shared by engine, attachment and cli. */
import type { Durability, Epoch, VolumeId } from "./identity.ts";

export interface VolumeOpenOptions {
  /**
   * "take": become the owner whoever was it before (the caller has authority: a publication, an operator).
   * "resume": only where the newest ownership is the one recorded in the local journal (after a restart of the
   * server); otherwise "fenced", and nothing is claimed.
   */
  mode: "take" | "resume";
  readOnly: boolean;
  /** Overrides the durability in the volume's metadata. */
  durability?: Durability;
}

/** "open" serves; "failed" answers every request with the stored error until it is closed. */
export type VolumeState = "open" | "failed" | "closed";

export interface VolumeStatus {
  volumeId: VolumeId;
  state: VolumeState;
  /** Why the volume failed, for people. */
  failure: string | undefined;
  epoch: Epoch;
  durability: Durability;
  sizeBytes: number;
  blockSizeBytes: number;
  /** True until the first block was ever written (by anyone, in any epoch). */
  neverWritten: boolean;
  /** Bytes acknowledged and not yet in S3. */
  dirtyBytes: number;
  /** Age of the oldest such byte in milliseconds; 0 where nothing is dirty. */
  behindMs: number;
  /** Bytes in the journal and what it may hold. */
  journalUsedBytes: number;
  journalLimitBytes: number;
  /** When the journal is full at the speed of the last minute; Infinity where it does not fill. */
  journalFullSeconds: number;
}
