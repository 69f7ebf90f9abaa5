/**
 * What the node service and the tools need of the data plane, apart from how it is reached. The gRPC client of
 * proto/nbd-server.proto implements it (control-client.ts), and so does a fake in the tests.
 * Every call is idempotent; errors are OperationErrors.
 */
import type { VolumeId } from "../volume/identity.ts";

export interface StoreLocation {
  /** "s3://bucket/prefix", nothing else; empty = the server's own. */
  url: string;
  endpoint: string;
  region: string;
}

export interface AttachOptions {
  volumeId: VolumeId;
  location: StoreLocation;
  /** accessKeyId, secretAccessKey, sessionToken; empty = the server's own credentials. */
  secrets: Readonly<Record<string, string>>;
  readOnly: boolean;
  durability: "s3" | "local" | "";
  /** Number of the publication that allows this node to own the volume; 0 = none asked for. */
  publication: number;
}

export type AttachmentState = "opening" | "serving" | "attached" | "detaching" | "failed";

export interface Attachment {
  volumeId: VolumeId;
  state: AttachmentState;
  /** "/dev/nbd7"; empty while opening. */
  devicePath: string;
  sizeBytes: number;
  blockSizeBytes: number;
  readOnly: boolean;
  /** No block was ever written: the one case in which a file system may be made. */
  neverWritten: boolean;
  epoch: number;
  dirtyBytes: number;
  behindSeconds: number;
  /** Why the state is "failed"; else empty. */
  failure: string;
}

export interface DataPlane {
  /** Returns once the device takes I/O. "conflict" when attached with other access; "in-use" when another node owns it. */
  attach(options: AttachOptions, signal?: AbortSignal): Promise<Attachment>;
  /** Returns once everything is in S3 and the device is free; no error where nothing is attached. */
  detach(volumeId: VolumeId, signal?: AbortSignal): Promise<void>;
  getAttachment(volumeId: VolumeId, signal?: AbortSignal): Promise<Attachment | undefined>;
  listAttachments(signal?: AbortSignal): Promise<Attachment[]>;
  /** Returns once everything written before is in S3. */
  flush(volumeId: VolumeId, signal?: AbortSignal): Promise<void>;
}
