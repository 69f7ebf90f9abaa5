/**
 * The ioctl way to the kernel's nbd devices, for kernels and sandboxes without netlink (nbd-device.ts has the contract).
 * One thread a device sets it up and then sits in NBD_DO_IT for as long as the device lives, which must be the same
 * thread that gave it the socket (Linux drivers/block/nbd.c, nbd_add_socket).
 * It has no live reconnect and no backend identifier: when this process ends or its connection breaks, the device's
 * requests fail and its file system is lost to the pod. So it is for trials and sandboxes, not for a cluster.
 */
import { Worker } from "node:worker_threads";
import type { Clock } from "../../base/clock.ts";
import { OperationError } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import { probeDevice, waitUntil } from "./device-probe.ts";
import { ensureDeviceNode, isFree, type NbdDeviceState, type NbdSysfs } from "./device-state.ts";
import type { IoctlTask, IoctlTaskEvent } from "./ioctl-thread.ts";
import type { Libc } from "./libc.ts";
import {
  assertConnectOptions,
  type ConnectOptions,
  type KernelDevice,
  type KernelNbd,
  type ReconnectOptions,
  type SocketPair,
  transmissionFlags,
} from "./nbd-device.ts";

const READY_DEADLINE_MS = 10_000;

interface Served {
  backendIdentifier: string;
  kernelFd: number;
  /** Resolves when NBD_DO_IT has returned and the thread ended. */
  ended: Promise<void>;
}

export interface IoctlNbdParts {
  libc: Libc;
  clock: Clock;
  log: Log;
  sysfs: NbdSysfs;
  /** Where the nodes are: "/dev". */
  deviceRoot: string;
}

export class IoctlNbd implements KernelNbd {
  readonly canReconnect = false;
  readonly #parts: IoctlNbdParts;
  readonly #served = new Map<number, Served>();
  /** A thread in NBD_DO_IT would keep the process from ending: its connection is shut down first. */
  readonly #onExit = (): void => {
    for (const served of this.#served.values()) this.#parts.libc.shutdown(served.kernelFd);
  };

  constructor(parts: IoctlNbdParts) {
    this.#parts = parts;
  }

  socketPair(): SocketPair {
    const [kernelFd, serverFd] = this.#parts.libc.socketPair();
    return { kernelFd, serverFd };
  }

  async connect(options: ConnectOptions): Promise<KernelDevice> {
    assertConnectOptions(options);
    const [kernelFd, ...others] = options.fds;
    for (const fd of others) this.#parts.libc.close(fd);
    const thread = await this.#findThread(kernelFd, options).catch((error: unknown) => {
      this.#parts.libc.close(kernelFd);
      throw error;
    });
    const { index } = thread;
    this.#serve(index, { backendIdentifier: options.backendIdentifier, kernelFd, ended: thread.ended });
    const isReady = (): boolean => {
      const state = this.get(index);
      return state?.connected === true && state.sizeBytes === options.sizeBytes;
    };
    const isOver = (): boolean => !this.#served.has(index);
    if ((await waitUntil(this.#parts.clock, READY_DEADLINE_MS, () => isReady() || isOver())) && !isOver()) {
      return { index, devicePath: this.#path(index) };
    }
    if (!isOver()) this.#parts.libc.shutdown(kernelFd);
    throw new OperationError("unavailable", "a kernel device did not come up", { context: { index } });
  }

  /** A thread that has set up a free device and given it the socket. */
  async #findThread(fd: number, options: ConnectOptions): Promise<{ index: number; ended: Promise<void> }> {
    const wanted = (state: NbdDeviceState): boolean => options.index === undefined || state.index === options.index;
    for (const state of this.list().filter((candidate) => isFree(candidate) && wanted(candidate))) {
      const { index } = state;
      const devicePath = this.#path(index);
      ensureDeviceNode(devicePath, state, this.#parts.libc.makeBlockNode);
      const thread = startThread({
        kind: "serve",
        devicePath,
        fd,
        blockSizeBytes: options.blockSizeBytes,
        blockCount: options.sizeBytes / options.blockSizeBytes,
        flags: transmissionFlags({ readOnly: options.readOnly, connectionCount: 1 }),
      });
      const failure = await thread.started;
      if (failure === undefined) return { index, ended: thread.ended };
      // Another program was faster: the next one.
      if (failure !== "EBUSY") throw refused("connect", index, failure);
    }
    throw new OperationError(
      "exhausted",
      "no kernel nbd device is free: detach a volume, or load the module with a larger nbds_max",
      { context: { devices: this.list().length } },
    );
  }

  #serve(index: number, served: Served): void {
    if (this.#served.size === 0) process.on("exit", this.#onExit);
    this.#served.set(index, served);
    void served.ended.then(() => {
      this.#served.delete(index);
      this.#parts.libc.close(served.kernelFd);
      if (this.#served.size === 0) process.off("exit", this.#onExit);
    });
  }

  async reconnect(options: ReconnectOptions): Promise<void> {
    for (const fd of options.fds) this.#parts.libc.close(fd);
    await Promise.reject(
      new OperationError("unavailable", "devices attached by ioctl have no live reconnect: detach and attach again", {
        context: { index: options.index },
      }),
    );
  }

  async resize(options: { index: number; backendIdentifier: string; sizeBytes: number }): Promise<void> {
    await Promise.reject(
      new OperationError("unavailable", "devices attached by ioctl have no live resize: detach and attach again", {
        context: { index: options.index },
      }),
    );
  }

  async disconnect(options: { index: number; backendIdentifier: string; force?: boolean }): Promise<void> {
    const { index } = options;
    const served = this.#served.get(index);
    if (this.get(index)?.connected !== true) return;
    if (served?.backendIdentifier !== options.backendIdentifier) {
      throw new OperationError("conflict", "a kernel device belongs to another volume or process", {
        context: { index },
      });
    }
    const usage = options.force === true ? undefined : this.usage(index);
    if (usage !== undefined) {
      throw new OperationError("in-use", "a kernel device is in use: unmount it first", { context: { index, usage } });
    }
    const failure = await startThread({ kind: "disconnect", devicePath: this.#path(index) }).started;
    if (failure !== undefined) throw refused("disconnect", index, failure);
    // The disconnect alone may have ended the thread already: its descriptor was closed then.
    if (this.#served.get(index) === served) this.#parts.libc.shutdown(served.kernelFd);
    await served.ended;
    const isGone = (): boolean => this.get(index)?.connected !== true;
    if (await waitUntil(this.#parts.clock, READY_DEADLINE_MS, isGone)) return;
    throw new OperationError("busy", "a program keeps a disconnected kernel device open: end it", {
      context: { index },
    });
  }

  list(): NbdDeviceState[] {
    return this.#parts.sysfs.list();
  }

  get(index: number): NbdDeviceState | undefined {
    return this.#parts.sysfs.get(index);
  }

  findByBackend(backendIdentifier: string): NbdDeviceState | undefined {
    for (const [index, served] of this.#served) {
      if (served.backendIdentifier === backendIdentifier) return this.get(index);
    }
    return undefined;
  }

  usage(index: number): string | undefined {
    const state = this.get(index);
    return state === undefined ? undefined : this.#parts.sysfs.usage(state);
  }

  async verify(index: number, deadlineMs: number): Promise<void> {
    await probeDevice(this.#parts.clock, this.#path(index), deadlineMs);
  }

  #path(index: number): string {
    return `${this.#parts.deviceRoot}/nbd${index}`;
  }
}

function refused(what: string, index: number, error: string): OperationError {
  return new OperationError("unavailable", `the kernel refused to ${what} an nbd device: is this root?`, {
    context: { index, error },
  });
}

/** `started` resolves with the error that kept the task from its last step, or undefined. */
function startThread(task: IoctlTask): { started: Promise<string | undefined>; ended: Promise<void> } {
  const worker = new Worker(new URL("ioctl-thread.ts", import.meta.url), { workerData: task, execArgv: [] });
  const started = Promise.withResolvers<string | undefined>();
  const ended = Promise.withResolvers<void>();
  worker.on("message", (event: IoctlTaskEvent) => started.resolve(event.error));
  worker.on("error", (error: Error) => started.resolve(error.message));
  worker.on("exit", () => {
    started.resolve("the thread ended early");
    ended.resolve();
  });
  return { started: started.promise, ended: ended.promise };
}
