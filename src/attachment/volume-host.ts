/**
 * Where volumes run, as the attachment sees it: worker-pool.ts runs them in threads, tests bring a fake.
 * A volume is open at most once per host. File descriptors given here belong to the host from the call on, whatever
 * its outcome.
 */
import type { Durability, VolumeId } from "../volume/identity.ts";
import type { VolumeStatus } from "../volume/status.ts";
import type { StoreLocation } from "./data-plane.ts";

export interface OpenRequest {
  volumeId: VolumeId;
  location: StoreLocation;
  secrets: Readonly<Record<string, string>>;
  mode: "take" | "resume";
  /** The kernel's device waits for its server to come back: what it was told of must be there, else "corrupt". */
  clientWaits: boolean;
  readOnly: boolean;
  /** Empty: what the volume's metadata says. */
  durability: Durability | "";
  /** 0: none asked for. Otherwise "in-use" where another node holds the volume's newest publication. */
  publication: number;
}

/** A device that answers every request with an error: what remains of a volume that may not be served any more. */
export interface BrokenRequest {
  volumeId: VolumeId;
  sizeBytes: number;
  blockSizeBytes: number;
  readOnly: boolean;
  /** Why, for people. */
  failure: string;
}

export interface ServeRequest {
  /** A connected stream socket on which requests arrive: the handshake, if any, is over. */
  fd: number;
  /** Bytes that were already read from it, to be handled first. */
  received: Uint8Array;
  /** The peer is this machine's kernel. */
  kernel: boolean;
}

export interface ServedConnection {
  /**
   * Resolves, with the reason, once the connection is over and no request of it can take effect any more. Never rejects.
   */
  readonly closed: Promise<string>;
  /** Takes no new request, answers what is in flight, closes; resolves as `closed` does. */
  drain(): Promise<void>;
  /** As drain, without waiting for a client to read its answers. */
  destroy(): Promise<void>;
}

export interface ServedVolume {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  status(): Promise<VolumeStatus>;
  serve(request: ServeRequest): Promise<ServedConnection>;
  /** Resolves once everything written before is in the store. */
  drain(): Promise<void>;
  /** Hand-over to the next process: what is acknowledged is in the journal; nothing waits for the store. */
  leave(): Promise<void>;
  /** Everything in the store, ownership given up. May be called again after an error. */
  close(): Promise<void>;
  /** Called once when the volume fails for good (fenced, corrupt); at once where it has failed already. */
  onFailure(listener: (failure: string) => void): void;
}

export interface VolumeHost {
  open(request: OpenRequest): Promise<ServedVolume>;
  openBroken(request: BrokenRequest): Promise<ServedVolume>;
}
