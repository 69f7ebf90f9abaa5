/**
 * Stand-ins for what an attachment drives: volumes, the kernel's devices, a clock that jumps. Each records its calls
 * in one common trace, so that tests can speak about order.
 */
import { OperationError } from "../../src/base/errors.ts";
import type { ErrorKind } from "../../src/base/errors.ts";
import type { Clock } from "../../src/base/clock.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { AttachmentRecords } from "../../src/attachment/attachment-record.ts";
import type { AttachmentParts } from "../../src/attachment/attachment.ts";
import type { AttachOptions } from "../../src/attachment/data-plane.ts";
import type { ConnectRequest, KernelDevice, KernelDevices } from "../../src/attachment/kernel-devices.ts";
import { backendOf } from "../../src/attachment/kernel-devices.ts";
import type {
  BrokenRequest,
  OpenRequest,
  ServedConnection,
  ServedVolume,
  ServeRequest,
  VolumeHost,
} from "../../src/attachment/volume-host.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import type { Epoch, VolumeId } from "../../src/volume/identity.ts";
import type { VolumeStatus } from "../../src/volume/status.ts";

export const nodeId = "node-a";
export const volumeSizeBytes = 16 * 1024 * 1024;

/** Time that passes at once: a sleep ends in the next turn. Records how long was slept. */
export class JumpingClock implements Clock {
  #nowMs = 0;
  readonly sleeps: number[] = [];

  now(): number {
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    this.sleeps.push(ms);
    await this.yield();
    signal?.throwIfAborted();
    this.#nowMs += ms;
  }

  after(ms: number, callback: () => void): { cancel(): void } {
    let cancelled = false;
    void this.sleep(ms).then(() => cancelled || callback());
    return {
      cancel: () => {
        cancelled = true;
      },
    };
  }

  yield(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }
}

export class FakeConnection implements ServedConnection {
  readonly closed: Promise<string>;
  readonly end: (reason: string) => void;
  drained = false;

  constructor() {
    const { promise, resolve } = Promise.withResolvers<string>();
    this.closed = promise;
    this.end = resolve;
  }

  async drain(): Promise<void> {
    this.drained = true;
    this.end("drained");
    await this.closed;
  }

  async destroy(): Promise<void> {
    this.end("destroyed");
  }
}

export class FakeVolume implements ServedVolume {
  readonly sizeBytes = volumeSizeBytes;
  readonly blockSizeBytes = 4096;
  readonly readOnly: boolean;
  readonly connections: FakeConnection[] = [];
  readonly #world: World;
  readonly #volumeId: VolumeId;
  #listener: ((failure: string) => void) | undefined;

  constructor(world: World, volumeId: VolumeId, readOnly: boolean) {
    this.#world = world;
    this.#volumeId = volumeId;
    this.readOnly = readOnly;
  }

  async status(): Promise<VolumeStatus> {
    return {
      volumeId: this.#volumeId,
      state: "open",
      failure: undefined,
      epoch: 3 as Epoch,
      durability: "s3",
      sizeBytes: this.sizeBytes,
      blockSizeBytes: this.blockSizeBytes,
      neverWritten: true,
      dirtyBytes: 8192,
      behindMs: 1500,
      journalUsedBytes: 8192,
      journalLimitBytes: 2 ** 30,
      journalFullSeconds: Infinity,
    };
  }

  async serve(request: ServeRequest): Promise<ServedConnection> {
    await this.#world.step("serve");
    this.#world.serverFds.add(request.fd);
    const connection = new FakeConnection();
    this.connections.push(connection);
    return connection;
  }

  async drain(): Promise<void> {
    await this.#world.step("drain");
  }

  async leave(): Promise<void> {
    await this.#world.step("leave");
  }

  async close(): Promise<void> {
    await this.#world.step("close");
  }

  onFailure(listener: (failure: string) => void): void {
    this.#listener = listener;
  }

  fail(failure: string): void {
    this.#listener?.(failure);
  }
}

/** Everything outside an attachment, with faults by the name of the step. */
export class World implements VolumeHost, KernelDevices {
  readonly trace: string[] = [];
  readonly volumes: FakeVolume[] = [];
  readonly devices: KernelDevice[] = [];
  readonly uses = new Map<number, string>();
  readonly serverFds = new Set<number>();
  readonly kernelFds = new Set<number>();
  readonly closedFds = new Set<number>();
  /** Of each volume that was asked for: whether a client waits for it. */
  readonly clientWaits: boolean[] = [];
  readonly disk = new MemoryDisk();
  readonly clock = new JumpingClock();
  readonly records = new AttachmentRecords(this.disk);
  readonly #faults = new Map<string, ErrorKind[]>();
  readonly #gates = new Map<string, Promise<void>>();
  #nextFd = 100;

  parts(): AttachmentParts {
    return { host: this, kernel: this, records: this.records, clock: this.clock, log: nullLog, nodeId };
  }

  /** The next calls of `step` fail with these kinds, one each. */
  failNext(step: string, ...kinds: ErrorKind[]): void {
    this.#faults.set(step, [...(this.#faults.get(step) ?? []), ...kinds]);
  }

  /** Holds every call of `step` until the returned function is called. */
  hold(step: string): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#gates.set(step, promise);
    return () => {
      this.#gates.delete(step);
      resolve();
    };
  }

  async step(name: string): Promise<void> {
    this.trace.push(name);
    await this.#gates.get(name);
    const kind = this.#faults.get(name)?.shift();
    if (kind !== undefined) throw new OperationError(kind, `injected at ${name}`);
  }

  async open(request: OpenRequest): Promise<ServedVolume> {
    this.clientWaits.push(request.clientWaits);
    await this.step(`open ${request.mode}`);
    return this.#addVolume(request.volumeId, request.readOnly);
  }

  async openBroken(request: BrokenRequest): Promise<ServedVolume> {
    await this.step("open broken");
    return this.#addVolume(request.volumeId, request.readOnly);
  }

  socketPair(): { kernelFd: number; serverFd: number } {
    this.#nextFd += 2;
    return { kernelFd: this.#nextFd, serverFd: this.#nextFd + 1 };
  }

  closeFd(fd: number): void {
    this.closedFds.add(fd);
  }

  async connect(request: ConnectRequest): Promise<KernelDevice> {
    this.kernelFds.add(request.fd);
    await this.step("connect");
    return this.addDevice(request.backend);
  }

  async reconnect(_device: KernelDevice, fd: number): Promise<void> {
    this.kernelFds.add(fd);
    await this.step("reconnect");
  }

  async disconnect(device: KernelDevice): Promise<void> {
    await this.step("disconnect");
    const position = this.devices.findIndex((entry) => entry.index === device.index);
    if (position !== -1) this.devices.splice(position, 1);
  }

  async list(prefix: string): Promise<KernelDevice[]> {
    return this.devices.filter((device) => device.backend.startsWith(prefix));
  }

  async usage(device: KernelDevice): Promise<string | undefined> {
    return this.uses.get(device.index);
  }

  addDevice(backend: string): KernelDevice {
    const index = this.devices.length;
    const device = { index, devicePath: `/dev/nbd${index}`, backend };
    this.devices.push(device);
    return device;
  }

  /** What a process before has left: a record, a device, or both. */
  async leaveBehind(
    options: AttachOptions,
    left: { record?: boolean; device?: boolean; usage?: string },
  ): Promise<void> {
    const backend = backendOf(nodeId, options.volumeId);
    if (left.record === true) {
      await this.records.write({ options, backend, sizeBytes: volumeSizeBytes, blockSizeBytes: 4096 });
    }
    if (left.device !== true) return;
    const device = this.addDevice(backend);
    if (left.usage !== undefined) this.uses.set(device.index, left.usage);
  }

  /** Lets everything that can run without time or outside help run. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < 50; turn += 1) await this.clock.yield();
  }

  #addVolume(volumeId: VolumeId, readOnly: boolean): FakeVolume {
    const volume = new FakeVolume(this, volumeId, readOnly);
    this.volumes.push(volume);
    return volume;
  }
}

export function attachOptions(changes: Partial<AttachOptions> = {}): AttachOptions {
  return {
    volumeId: mustVolumeId("vol-1"),
    location: { url: "", endpoint: "", region: "" },
    secrets: {},
    readOnly: false,
    durability: "",
    publication: 1,
    ...changes,
  };
}
