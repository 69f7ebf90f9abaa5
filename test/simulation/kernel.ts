/**
 * The nbd devices of one simulated machine's kernel, seen from both sides: KernelDevices for the server's attachment
 * code, and block requests for who uses a device.
 *
 * As Linux does it with a dead-connection timeout: a device whose connection ended keeps its requests, and sends every
 * unanswered one again, in any order, over the connection that it is given next. A request is answered once; answers
 * of a connection that is over are not heard any more.
 */
import { OperationError } from "../../src/base/errors.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import type { Clock } from "../../src/base/clock.ts";
import type { ConnectRequest, KernelDevice, KernelDevices } from "../../src/attachment/kernel-devices.ts";
import { SocketPair } from "./socket-pair.ts";
import type { Coverage } from "./coverage.ts";
import type { SimProcess } from "./sim-process.ts";

export const EIO = 5;
const REQUEST_MAGIC = 0x25609513;
const REPLY_MAGIC = 0x67446698;
const REQUEST_BYTES = 28;
const REPLY_BYTES = 16;

export interface BlockRequest {
  /** COMMAND_… of the protocol. */
  type: number;
  flags: number;
  offset: number;
  length: number;
  payload: Buffer | undefined;
  /** Called once: error number (0 = well), and what was read. */
  done: (errno: number, data: Buffer | undefined) => void;
}

/** One connection of a device, from the kernel's side. */
class DeviceLink {
  readonly socket: SocketPair;
  readonly #device: SimDevice;
  #buffered: Buffer[] = [];
  #bufferedBytes = 0;
  /** Of the reply that begins what is buffered; 0 where that is not known yet. */
  #expectedBytes = 0;

  constructor(socket: SocketPair, device: SimDevice) {
    this.socket = socket;
    this.#device = device;
    socket.setKernel({ received: (bytes) => this.#received(bytes), closed: () => device.linkClosed(this) });
  }

  #received(bytes: Buffer): void {
    this.#buffered.push(bytes);
    this.#bufferedBytes += bytes.length;
    // Until a whole reply is there, nothing is put together again and again.
    while (this.#bufferedBytes >= Math.max(REPLY_BYTES, this.#expectedBytes)) {
      const whole = this.#buffered.length === 1 ? this.#buffered[0] : Buffer.concat(this.#buffered);
      this.#buffered = [whole];
      if (whole.readUInt32BE(0) !== REPLY_MAGIC) throw new Error("the server sent no reply where one was due");
      const errno = whole.readUInt32BE(4);
      const cookie = whole.readBigUInt64BE(8);
      const payloadBytes = errno === 0 ? this.#device.payloadOf(cookie) : 0;
      const end = REPLY_BYTES + payloadBytes;
      this.#expectedBytes = end;
      if (whole.length < end) return;
      this.#expectedBytes = 0;
      this.#buffered = [whole.subarray(end)];
      this.#bufferedBytes = whole.length - end;
      this.#device.answered(this, cookie, errno, whole.subarray(REPLY_BYTES, end));
    }
  }
}

export class SimDevice implements KernelDevice {
  readonly index: number;
  readonly devicePath: string;
  readonly backend: string;
  readonly sizeBytes: number;
  /** Who uses the device; keeps it from being freed. */
  usage: string | undefined;
  gone = false;
  readonly #random: SeededRandom;
  readonly #coverage: Coverage;
  readonly #pending = new Map<bigint, BlockRequest>();
  #nextCookie = 1n;
  #link: DeviceLink | undefined;

  constructor(options: {
    index: number;
    request: ConnectRequest;
    socket: SocketPair;
    random: SeededRandom;
    coverage: Coverage;
  }) {
    const { index, request, socket, random, coverage } = options;
    this.index = index;
    this.devicePath = `/dev/nbd${index}`;
    this.backend = request.backend;
    this.sizeBytes = request.sizeBytes;
    this.#random = random;
    this.#coverage = coverage;
    this.#link = new DeviceLink(socket, this);
  }

  get pendingCount(): number {
    return this.#pending.size;
  }

  get connected(): boolean {
    return this.#link !== undefined;
  }

  submit(request: BlockRequest): void {
    if (this.gone) return request.done(EIO, undefined);
    const cookie = this.#nextCookie++;
    this.#pending.set(cookie, request);
    this.#send(cookie, request);
  }

  /** Ends the connection, as the kernel does on an error of its socket. */
  breakConnection(): void {
    const link = this.#link;
    this.#link = undefined;
    link?.socket.closeFromKernel();
  }

  reconnect(socket: SocketPair): void {
    this.breakConnection();
    this.#link = new DeviceLink(socket, this);
    const waiting = [...this.#pending];
    if (waiting.length > 0) this.#coverage.add("kernel sent requests again");
    for (let left = waiting.length; left > 0; left -= 1) {
      const [[cookie, request]] = waiting.splice(this.#random.below(left), 1);
      this.#send(cookie, request);
    }
  }

  /** Frees the device: what waits fails. */
  remove(): void {
    this.gone = true;
    this.breakConnection();
    for (const [cookie, request] of this.#pending) {
      this.#pending.delete(cookie);
      request.done(EIO, undefined);
    }
  }

  /** The machine is gone, and all who wait with it. */
  vanish(): void {
    this.gone = true;
    this.#link = undefined;
    this.#pending.clear();
  }

  linkClosed(link: DeviceLink): void {
    if (this.#link === link) this.#link = undefined;
  }

  payloadOf(cookie: bigint): number {
    const request = this.#pending.get(cookie);
    return request?.type === 0 ? request.length : 0;
  }

  answered(link: DeviceLink, cookie: bigint, errno: number, data: Buffer): void {
    if (this.#link !== link) return;
    const request = this.#pending.get(cookie);
    if (request === undefined) throw new Error(`the server answered a request that nobody made, or twice: ${cookie}`);
    this.#pending.delete(cookie);
    request.done(errno, request.type === 0 && errno === 0 ? data : undefined);
  }

  #send(cookie: bigint, request: BlockRequest): void {
    if (this.#link === undefined) return;
    const { payload } = request;
    const bytes = Buffer.allocUnsafe(REQUEST_BYTES + (payload?.length ?? 0));
    bytes.writeUInt32BE(REQUEST_MAGIC, 0);
    bytes.writeUInt16BE(request.flags, 4);
    bytes.writeUInt16BE(request.type, 6);
    bytes.writeBigUInt64BE(cookie, 8);
    bytes.writeBigUInt64BE(BigInt(request.offset), 16);
    bytes.writeUInt32BE(request.length, 24);
    payload?.copy(bytes, REQUEST_BYTES);
    this.#link.socket.send(bytes);
  }
}

export interface KernelParts {
  clock: Clock;
  random: SeededRandom;
  coverage: Coverage;
}

/** The kernel of one machine; outlives the server's processes, and dies with the machine. */
export class SimKernel {
  readonly #parts: KernelParts;
  readonly #devices = new Map<number, SimDevice>();
  readonly #sockets = new Map<number, SocketPair>();
  #nextFd = 10;

  constructor(parts: KernelParts) {
    this.#parts = parts;
  }

  get devices(): SimDevice[] {
    return [...this.#devices.values()];
  }

  deviceOf(backend: string): SimDevice | undefined {
    return this.devices.find((device) => device.backend === backend);
  }

  /** The socket behind a descriptor; taken over by the caller. */
  takeSocket(fd: number): SocketPair {
    const socket = this.#sockets.get(fd);
    if (socket === undefined) throw new Error(`nobody has the descriptor ${fd}`);
    this.#sockets.delete(fd);
    return socket;
  }

  closeFd(fd: number): void {
    const socket = this.#sockets.get(fd);
    this.#sockets.delete(fd);
    socket?.closeFd();
  }

  /** The devices as one process of the server drives them. */
  controlledBy(process: SimProcess, pause: () => Promise<void>): KernelDevices {
    return {
      socketPair: () => {
        const socket = new SocketPair(this.#parts.clock, this.#parts.random, process);
        const serverFd = this.#nextFd;
        const kernelFd = this.#nextFd + 1;
        this.#nextFd += 2;
        this.#sockets.set(serverFd, socket);
        this.#sockets.set(kernelFd, socket);
        return { kernelFd, serverFd };
      },
      closeFd: (fd) => this.closeFd(fd),
      connect: async (request) => {
        await pause();
        const socket = this.takeSocket(request.fd);
        let index = 0;
        while (this.#devices.has(index)) index += 1;
        const device = new SimDevice({ index, request, socket, ...this.#parts });
        this.#devices.set(index, device);
        await pause();
        return device;
      },
      reconnect: async (device, fd) => {
        await pause();
        const socket = this.takeSocket(fd);
        const known = this.#devices.get(device.index);
        if (known === undefined || known.backend !== device.backend) {
          socket.closeFromKernel();
          throw new OperationError("not-found", "simulated: no such device");
        }
        known.reconnect(socket);
        await pause();
      },
      disconnect: async (device) => {
        await pause();
        const known = this.#devices.get(device.index);
        if (known === undefined || known.backend !== device.backend) return;
        this.#devices.delete(device.index);
        known.remove();
        await pause();
      },
      list: async (prefix) => {
        await pause();
        return this.devices.filter((device) => device.backend.startsWith(prefix));
      },
      usage: async (device) => {
        await pause();
        return this.#devices.get(device.index)?.usage;
      },
    };
  }

  /** The machine loses power. */
  vanish(): void {
    for (const device of this.#devices.values()) device.vanish();
    this.#devices.clear();
    this.#sockets.clear();
  }
}
