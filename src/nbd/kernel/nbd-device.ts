/**
 * The kernel's nbd devices, as the attachment uses them; two ways lead there.
 *
 * | way     | class           | where                                        | live reconnect | backend identifier |
 * |---------|-----------------|----------------------------------------------|----------------|--------------------|
 * | netlink | NetlinkNbd      | Linux ≥ 5.14, initial network namespace      | yes            | yes                |
 * | ioctl   | IoctlNbd        | anywhere, sandboxes without netlink included | no             | no                 |
 *
 * The kernel's end of a socket pair goes to the kernel, the other is read by the server: `new net.Socket({fd})`. When
 * the kernel gives a connection up, that other end sees the end of the stream: the server must then reconnect at once.
 * Threads: nothing here blocks the calling thread, but connect, reconnect, resize, disconnect and verify resolve only
 * once I/O that the device's own server must answer is done. So the thread that serves the device must stay free to
 * serve while one is awaited, and no request handler of it may await one.
 * No call here may be made with a device of another owner: the identifier is checked before each change.
 */
import { assert } from "../../base/assert.ts";
import type { NbdDeviceState } from "./device-state.ts";

export interface SocketPair {
  /** For connect or reconnect, which close it. */
  kernelFd: number;
  serverFd: number;
}

export interface ConnectOptions {
  /** Kernel ends of socket pairs, one per connection; closed by the call whatever its outcome. */
  fds: readonly number[];
  /** A multiple of blockSizeBytes. */
  sizeBytes: number;
  /** 512, 1024, 2048 or 4096. */
  blockSizeBytes: number;
  readOnly: boolean;
  /** Names the owner's volume: 1 to 200 printable ASCII characters. Found again by findByBackend. */
  backendIdentifier: string;
  /**
   * Milliseconds from a request, or the look before, to the kernel's next look whether the request's connection is dead
   * and it must be sent on another one; the kernel may take a second longer. Netlink alone, and 30 s where sysfs is
   * read-only: by ioctl there is no other connection. No connection is given up because its server is slow.
   */
  requestTimerMs: number;
  /** How long new requests wait for a reconnect before they fail: hours, since a file system does not survive it. */
  deadConnectionTimeoutSeconds: number;
  /** Which device; default: the kernel chooses a free one. */
  index?: number;
}

export interface ReconnectOptions {
  index: number;
  backendIdentifier: string;
  /** As in connect: as many as the device has dead connections. */
  fds: readonly number[];
  requestTimerMs: number;
  deadConnectionTimeoutSeconds: number;
  /** How long the old connection may take to be marked dead. */
  deadlineMs?: number;
}

export interface KernelDevice {
  index: number;
  /** "/dev/nbd7"; a block device node is there. */
  devicePath: string;
}

export interface KernelNbd {
  /** False on the ioctl way: a server that dies takes its devices with it, and reconnect always fails. */
  readonly canReconnect: boolean;
  /** Close-on-exec unix stream sockets, as file descriptors. */
  socketPair(): SocketPair;
  /**
   * Makes a free device serve from `fds`; resolves once its size and node are there. Requests may be waiting in the
   * sockets before it resolves.
   * Errors: "busy" (index given, and somebody has it open); "exhausted" (no device to be had);
   * "unavailable" (no driver, no permission, kernel too slow). After an error nothing is left connected, but for a
   * kernel too slow: look with findByBackend then.
   */
  connect(options: ConnectOptions): Promise<KernelDevice>;
  /**
   * Gives a device whose connections are dead new ones; resolves once the kernel has taken them (which its own success
   * does not say). Requests that were in flight arrive there at the kernel's next look (requestTimerMs). Before it is
   * called nothing of an old connection may take effect any more.
   * Errors: "not-found" (no such device), "conflict" (another's), "busy" (the old connection still lives).
   */
  reconnect(options: ReconnectOptions): Promise<void>;
  /** Changes the size of a device whose server is answering; resolves once the kernel shows it. */
  resize(options: { index: number; backendIdentifier: string; sizeBytes: number }): Promise<void>;
  /**
   * Frees the device; no error where it is free already. "in-use" where something is seen to use it (unless `force`),
   * "conflict" where it is another's, "busy" where a program keeps it open. Unanswered requests fail with EIO.
   */
  disconnect(options: { index: number; backendIdentifier: string; force?: boolean }): Promise<void>;
  /** All devices of the driver, in use or not. */
  list(): NbdDeviceState[];
  get(index: number): NbdDeviceState | undefined;
  /** The configured device with this identifier. */
  findByBackend(backendIdentifier: string): NbdDeviceState | undefined;
  /** What is seen to use the device, for people; undefined where nothing is. */
  usage(index: number): string | undefined;
  /**
   * Proves that requests are answered: reads a block past every cache, in a process of its own. "unavailable" after
   * `deadlineMs`.
   */
  verify(index: number, deadlineMs: number): Promise<void>;
}

/** NBD transmission flags that a device of ours has (the protocol's bits; the kernel ignores those it does not know). */
const HAS_FLAGS = 1 << 0;
const READ_ONLY = 1 << 1;
const SEND_FLUSH = 1 << 2;
const SEND_FUA = 1 << 3;
const SEND_TRIM = 1 << 5;
const SEND_WRITE_ZEROES = 1 << 6;
const CAN_MULTI_CONNECTION = 1 << 8;

export function transmissionFlags(options: { readOnly: boolean; connectionCount: number }): number {
  const always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES;
  return always | (options.readOnly ? READ_ONLY : 0) | (options.connectionCount > 1 ? CAN_MULTI_CONNECTION : 0);
}

export function assertConnectOptions(options: ConnectOptions): void {
  const { sizeBytes, blockSizeBytes, requestTimerMs, deadConnectionTimeoutSeconds } = options;
  assert(options.fds.length > 0, "a device needs a connection");
  assert([512, 1024, 2048, 4096].includes(blockSizeBytes), `block size ${blockSizeBytes}`);
  assert(Number.isSafeInteger(sizeBytes) && sizeBytes > 0 && sizeBytes % blockSizeBytes === 0, `size ${sizeBytes}`);
  assert(/^[\x21-\x7e]{1,200}$/.test(options.backendIdentifier), "backend identifier of 1 to 200 printable characters");
  assert(Number.isInteger(requestTimerMs) && requestTimerMs >= 1, `request timer ${requestTimerMs}`);
  assert(
    Number.isInteger(deadConnectionTimeoutSeconds) && deadConnectionTimeoutSeconds >= 1,
    "dead connection timeout",
  );
}
