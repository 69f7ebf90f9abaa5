/**
 * What the attachment needs of the kernel's nbd devices; kernel-nbd-devices.ts is the machine's, tests bring a fake.
 * No call here may run on a thread that serves volumes: each may wait for the device's own I/O.
 */
import { createHash } from "node:crypto";

export interface KernelDevice {
  index: number;
  /** "/dev/nbd7". */
  devicePath: string;
  /** What the device was connected with; names its volume. */
  backend: string;
}

export interface ConnectRequest {
  /** The kernel's end of a socket pair. Belongs to the callee, whatever the outcome. */
  fd: number;
  backend: string;
  sizeBytes: number;
  blockSizeBytes: number;
  readOnly: boolean;
}

export interface KernelDevices {
  /** Two ends of a stream socket. */
  socketPair(): { kernelFd: number; serverFd: number };
  closeFd(fd: number): void;
  /** Makes a free device serve from `fd`; returns once its node is there and it takes I/O. */
  connect(request: ConnectRequest): Promise<KernelDevice>;
  /** Gives a device whose socket is dead a new one; returns once requests arrive there. `fd` as in connect. */
  reconnect(device: KernelDevice, fd: number): Promise<void>;
  /** Frees the device; no error where it is free already. */
  disconnect(device: KernelDevice): Promise<void>;
  /** All configured devices whose backend starts with `prefix`. */
  list(prefix: string): Promise<KernelDevice[]>;
  /** What keeps the device from being freed (a mount, a holder), for people; undefined where nothing is seen. */
  usage(device: KernelDevice): Promise<string | undefined>;
}

/** The backend identifier of a volume's device: unique per node, so that several nodes may share one kernel in tests. */
export function backendOf(nodeId: string, volumeId: string): string {
  return `${backendPrefix(nodeId)}${volumeId}`;
}

/**
 * What the identifiers of all devices of this node start with. The kernel's identifiers are short and plain: a node id
 * that is neither stands as a hash.
 */
export function backendPrefix(nodeId: string): string {
  const plain = /^[A-Za-z0-9._-]{1,100}$/.test(nodeId);
  return `s3block:${plain ? nodeId : createHash("sha256").update(nodeId).digest("hex").slice(0, 32)}:`;
}
