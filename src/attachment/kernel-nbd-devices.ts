/**
 * KernelDevices over nbd/kernel. Connecting and freeing are given the timers that make a killed server a short pause
 * and a missing one no error for hours.
 * It must never be called on a thread that serves volumes.
 */
import type { KernelNbd } from "../nbd/kernel/nbd-device.ts";
import type { NbdDeviceState } from "../nbd/kernel/device-state.ts";
import type { ConnectRequest, KernelDevice, KernelDevices } from "./kernel-devices.ts";

export interface KernelNbdDevicesOptions {
  nbd: KernelNbd;
  closeFd(fd: number): void;
  requestTimerMs: number;
  deadConnectionTimeoutSeconds: number;
}

/** How long a new device or a new connection may take to answer its first read. */
const verifyDeadlineMs = 60_000;

export class KernelNbdDevices implements KernelDevices {
  readonly #options: KernelNbdDevicesOptions;

  constructor(options: KernelNbdDevicesOptions) {
    this.#options = options;
  }

  socketPair(): { kernelFd: number; serverFd: number } {
    return this.#options.nbd.socketPair();
  }

  closeFd(fd: number): void {
    this.#options.closeFd(fd);
  }

  async connect(request: ConnectRequest): Promise<KernelDevice> {
    const { nbd, requestTimerMs, deadConnectionTimeoutSeconds } = this.#options;
    const { fd, backend, sizeBytes, blockSizeBytes, readOnly } = request;
    const { index, devicePath } = await nbd.connect({
      fds: [fd],
      backendIdentifier: backend,
      sizeBytes,
      blockSizeBytes,
      readOnly,
      requestTimerMs,
      deadConnectionTimeoutSeconds,
    });
    await nbd.verify(index, verifyDeadlineMs);
    return { index, devicePath, backend };
  }

  async reconnect(device: KernelDevice, fd: number): Promise<void> {
    const { nbd, requestTimerMs, deadConnectionTimeoutSeconds } = this.#options;
    const { index, backend } = device;
    await nbd.reconnect({ index, backendIdentifier: backend, fds: [fd], requestTimerMs, deadConnectionTimeoutSeconds });
  }

  async disconnect(device: KernelDevice): Promise<void> {
    await this.#options.nbd.disconnect({ index: device.index, backendIdentifier: device.backend });
  }

  async list(prefix: string): Promise<KernelDevice[]> {
    return this.#options.nbd.list().flatMap((state) => {
      const device = configured(state);
      return device?.backend.startsWith(prefix) === true ? [device] : [];
    });
  }

  async usage(device: KernelDevice): Promise<string | undefined> {
    return this.#options.nbd.usage(device.index);
  }
}

function configured(state: NbdDeviceState): KernelDevice | undefined {
  if (!state.connected || state.backendIdentifier === undefined) return undefined;
  return { index: state.index, devicePath: `/dev/nbd${state.index}`, backend: state.backendIdentifier };
}
