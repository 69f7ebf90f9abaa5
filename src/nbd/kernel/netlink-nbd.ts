/**
 * The netlink way to the kernel's nbd devices (nbd-device.ts has the contract). Keeps no state of its own but which
 * device has a change in work: what is true is read from the kernel each time.
 * Facts it is built on (Linux drivers/block/nbd.c, 5.14 to 6.18; tried on 6.1):
 * - RECONFIGURE replaces dead connections only and reports success even where it replaced none. What it takes, it gives
 *   the device's timeout as send timeout: that is how a taken socket is told from a refused one.
 * - A timeout makes the kernel give up a connection that is merely slow; none (0) makes it keep the connection and look
 *   at each request every 30 s, whether its connection was replaced. That interval is the queue's io_timeout in sysfs.
 *   So a device is connected with a timeout, then relieved of it, then given a short interval: a slow store never costs
 *   the connection, and what a killed server left unanswered is sent again soon after the reconnect.
 * - A request keeps the interval that was in force when it began. One that begins while the timeout is being taken away
 *   and is not answered by this server, because it dies at once, waits so long after the next reconnect: so the
 *   timeout is short, and nothing comes between taking it away and setting the interval.
 * - A dead connection is marked so by a kernel thread, a moment after its peer has closed: hence the retries.
 * - DISCONNECT does not look for users, and fails requests that were not answered: hence the look before it.
 * - The kernel takes a reference of a socket: closing our descriptor of it is right after every request.
 */
import type { Clock } from "../../base/clock.ts";
import { describe, type ErrorKind, OperationError } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import { probeDevice, waitUntil } from "./device-probe.ts";
import { ensureDeviceNode, type NbdDeviceState, type NbdSysfs } from "./device-state.ts";
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
import { decodeConnected, encodeConnect, encodeDisconnect, encodeReconfigure } from "./nbd-messages.ts";
import { NetlinkError } from "./netlink-socket.ts";

const REQUEST_DEADLINE_MS = 10_000;
const READY_DEADLINE_MS = 10_000;
/** The timeout while a connection is made. */
const CONNECTING_TIMEOUT_SECONDS = 5;
/** A server that takes no byte for longer loses the connection and must make another. */
const SEND_TIMEOUT_MS = 30_000;
const RECONNECT_DEADLINE_MS = 10_000;
const RETRY_INTERVAL_MS = 20;
/** udev opens a device for a moment whenever it changes. */
const BUSY_RETRIES = 50;

export interface NetlinkNbdParts {
  libc: Libc;
  clock: Clock;
  log: Log;
  sysfs: NbdSysfs;
  /** Where the nodes are: "/dev". */
  deviceRoot: string;
  /** Sends to the kernel's nbd family; resolves with the payloads before the acknowledgement (see NetlinkRequest). */
  request: (payload: Buffer, deadlineMs: number, whenHandled?: () => void) => Promise<Buffer[]>;
}

const refusals: Readonly<Record<string, { kind: ErrorKind; hint: string }>> = {
  EPERM: { kind: "unavailable", hint: "CAP_SYS_ADMIN is needed in the initial user namespace" },
  EACCES: { kind: "unavailable", hint: "CAP_SYS_ADMIN is needed in the initial user namespace" },
  EBUSY: { kind: "busy", hint: "another program has the device open" },
  ENOMEM: { kind: "exhausted", hint: "the kernel has no memory or no number for another device: detach some" },
  ENOSPC: { kind: "exhausted", hint: "the kernel has no number for another device: detach some" },
  EEXIST: { kind: "busy", hint: "another program made the same device" },
  EINVAL: { kind: "conflict", hint: "the device is not in the state this needs" },
};

export class NetlinkNbd implements KernelNbd {
  readonly canReconnect = true;
  readonly #parts: NetlinkNbdParts;
  readonly #inWork = new Set<number>();

  constructor(parts: NetlinkNbdParts) {
    this.#parts = parts;
  }

  socketPair(): SocketPair {
    const [kernelFd, serverFd] = this.#parts.libc.socketPair();
    return { kernelFd, serverFd };
  }

  async connect(options: ConnectOptions): Promise<KernelDevice> {
    assertConnectOptions(options);
    try {
      const index = await this.#requestConnect(options);
      try {
        return await this.#ready(index, options);
      } catch (error) {
        await this.#request(encodeDisconnect(index, options.backendIdentifier), "disconnect", { index }).catch(
          (cause: unknown) =>
            this.#parts.log.error("cannot disconnect a device that did not come up", { index, cause }),
        );
        throw error;
      }
    } finally {
      this.#close(options.fds);
    }
  }

  async #requestConnect(options: ConnectOptions): Promise<number> {
    const message = encodeConnect({
      index: options.index,
      fds: options.fds,
      sizeBytes: options.sizeBytes,
      blockSizeBytes: options.blockSizeBytes,
      timeoutSeconds: CONNECTING_TIMEOUT_SECONDS,
      deadConnectionTimeoutSeconds: options.deadConnectionTimeoutSeconds,
      flags: transmissionFlags({ readOnly: options.readOnly, connectionCount: options.fds.length }),
      backendIdentifier: options.backendIdentifier,
    });
    for (let attempt = 0; ; attempt += 1) {
      try {
        const payloads = await this.#request(message, "connect", { backend: options.backendIdentifier });
        if (payloads.length === 1) return decodeConnected(payloads[0]);
        throw new OperationError("corrupt", "the kernel answered a connect otherwise than by one message", {
          context: { messages: payloads.length },
        });
      } catch (error) {
        const passing = error instanceof OperationError && error.kind === "busy" && attempt < BUSY_RETRIES;
        if (!passing || (options.index !== undefined && this.get(options.index)?.connected === true)) throw error;
        await this.#parts.clock.sleep(RETRY_INTERVAL_MS);
      }
    }
  }

  async #ready(index: number, options: ConnectOptions): Promise<KernelDevice> {
    const { clock, libc, sysfs } = this.#parts;
    const isReady = (): boolean => {
      const state = sysfs.get(index);
      return state?.connected === true && state.sizeBytes === options.sizeBytes;
    };
    if (!(await waitUntil(clock, READY_DEADLINE_MS, isReady))) {
      throw new OperationError("unavailable", "a kernel device did not come up: is sysfs mounted and readable?", {
        context: { index },
      });
    }
    const state = this.#mustBeOurs(index, options.backendIdentifier);
    const devicePath = this.#path(index);
    ensureDeviceNode(devicePath, state, libc.makeBlockNode);
    await this.#bearSlowness(index, options);
    return { index, devicePath };
  }

  async reconnect(options: ReconnectOptions): Promise<void> {
    const { index, backendIdentifier } = options;
    const { clock, libc } = this.#parts;
    try {
      await this.#exclusively(index, async () => {
        const endMs = clock.monotonicMs() + (options.deadlineMs ?? RECONNECT_DEADLINE_MS);
        for (let waiting = options.fds; ;) {
          this.#mustBeOurs(index, backendIdentifier);
          const message = encodeReconfigure({ ...options, fds: waiting, timeoutSeconds: CONNECTING_TIMEOUT_SECONDS });
          await this.#request(message, "reconnect", { index });
          waiting = waiting.filter((fd) => libc.sendTimeoutMs(fd) === 0);
          if (waiting.length === 0) return await this.#bearSlowness(index, options);
          if (clock.monotonicMs() >= endMs) {
            // Whoever serves the device must not lose it for being slow.
            await this.#bearSlowness(index, { ...options, fds: [] });
            throw new OperationError(
              "busy",
              "the old connection of a kernel device still lives: end its server first",
              {
                context: { index },
              },
            );
          }
          await clock.sleep(RETRY_INTERVAL_MS);
        }
      });
    } finally {
      this.#close(options.fds);
    }
  }

  /** Slow answers cost no connection from now on, and requests of a dead one are looked after every `requestTimerMs`. */
  async #bearSlowness(
    index: number,
    { backendIdentifier, requestTimerMs, fds }: Pick<ConnectOptions, "backendIdentifier" | "requestTimerMs" | "fds">,
  ): Promise<void> {
    const { libc, log, sysfs } = this.#parts;
    const message = encodeReconfigure({ index, backendIdentifier, timeoutSeconds: 0 });
    await this.#request(message, "set the timeout of", { index }, () => {
      try {
        sysfs.setRequestTimer(index, requestTimerMs);
      } catch (error) {
        const hint = "cannot set a device's timer, is sysfs writable? Requests of a killed server will wait 30 s";
        log.warn(hint, { index, error: describe(error) });
      }
    });
    for (const fd of fds) libc.setSendTimeoutMs(fd, SEND_TIMEOUT_MS);
  }

  async resize(options: { index: number; backendIdentifier: string; sizeBytes: number }): Promise<void> {
    const { index, sizeBytes } = options;
    await this.#exclusively(index, async () => {
      this.#mustBeOurs(index, options.backendIdentifier);
      await this.#request(encodeReconfigure(options), "resize", { index, sizeBytes });
      const done = await waitUntil(
        this.#parts.clock,
        READY_DEADLINE_MS,
        () => this.get(index)?.sizeBytes === sizeBytes,
      );
      if (!done) {
        throw new OperationError("unavailable", "the kernel did not take a new size", {
          context: { index, sizeBytes },
        });
      }
    });
  }

  async disconnect(options: { index: number; backendIdentifier: string; force?: boolean }): Promise<void> {
    const { index, backendIdentifier } = options;
    await this.#exclusively(index, async () => {
      if (this.get(index)?.connected !== true) return;
      this.#mustBeOurs(index, backendIdentifier);
      const usage = options.force === true ? undefined : this.usage(index);
      if (usage !== undefined) {
        throw new OperationError("in-use", "a kernel device is in use: unmount it first", {
          context: { index, usage },
        });
      }
      await this.#request(encodeDisconnect(index, backendIdentifier), "disconnect", { index });
      const isGone = (): boolean => this.get(index)?.connected !== true;
      if (!(await waitUntil(this.#parts.clock, READY_DEADLINE_MS, isGone))) {
        throw new OperationError("busy", "a program keeps a disconnected kernel device open: end it", {
          context: { index },
        });
      }
    });
  }

  list(): NbdDeviceState[] {
    return this.#parts.sysfs.list();
  }

  get(index: number): NbdDeviceState | undefined {
    return this.#parts.sysfs.get(index);
  }

  findByBackend(backendIdentifier: string): NbdDeviceState | undefined {
    return this.list().find((state) => state.connected && state.backendIdentifier === backendIdentifier);
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

  #mustBeOurs(index: number, backendIdentifier: string): NbdDeviceState {
    const state = this.get(index);
    if (state === undefined || !state.connected) {
      throw new OperationError("not-found", "a kernel device is not connected", { context: { index } });
    }
    if (state.backendIdentifier !== backendIdentifier) {
      throw new OperationError("conflict", "a kernel device belongs to another volume", {
        context: { index, expected: backendIdentifier, found: state.backendIdentifier ?? "none" },
      });
    }
    return state;
  }

  async #request(
    payload: Buffer,
    what: string,
    context: Record<string, string | number>,
    whenHandled?: () => void,
  ): Promise<Buffer[]> {
    try {
      return await this.#parts.request(payload, REQUEST_DEADLINE_MS, whenHandled);
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error;
      const { kind, hint } = refusals[error.code] ?? { kind: "unavailable", hint: "see the kernel's log" };
      throw new OperationError(kind, `the kernel refused to ${what} an nbd device: ${hint}`, {
        cause: error,
        context: { ...context, error: error.code },
      });
    }
  }

  /** One change of a device at a time: a request the kernel sits on must not be joined by others. */
  async #exclusively(index: number, work: () => Promise<void>): Promise<void> {
    if (this.#inWork.has(index)) {
      throw new OperationError("busy", "a change of this kernel device is in work: try again", { context: { index } });
    }
    this.#inWork.add(index);
    try {
      await work();
    } finally {
      this.#inWork.delete(index);
    }
  }

  #close(fds: readonly number[]): void {
    for (const fd of fds) this.#parts.libc.close(fd);
  }
}
