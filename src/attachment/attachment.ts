/**
 * One volume served to one kernel device, from opening to closing. Logic alone: volumes, kernel and records are given.
 *
 * | phase     | volume             | kernel device             | goes to                                     |
 * |-----------|--------------------|---------------------------|---------------------------------------------|
 * | opening   | being opened       | none, or waiting (resume) | serving, attached (resume), closed          |
 * | serving   | open               | being connected           | attached, detaching (undo)                  |
 * | attached  | open, or broken    | configured                | detaching, left                             |
 * | detaching | being closed       | being freed               | closed; stays on an error, detach goes on   |
 * | closed    | closed             | free                      | (end)                                       |
 * | left      | for the successor  | configured, waits         | (end)                                       |
 *
 * A failure (fenced, corrupt, device lost) is kept beside the phase: the device then answers errors until a detach.
 * Invariants: the record is written before the device is connected and removed after the volume was closed; a new
 * connection is served only after the one before has closed; a volume is never forgotten with data that could still
 * be uploaded.
 *
 * A resumed device gets its new connection before its volume is open. The kernel looks after a dead connection's requests
 * at intervals (decision 0401): it sends them again at the first look that finds a new one, and they wait in the socket
 * until the volume is served. Without that, a volume that opens just after a look would wait for the next.
 */
import { assert } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import { asOperationError, describe, isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { AttachmentRecord, AttachmentRecords } from "./attachment-record.ts";
import type { Attachment, AttachmentState, AttachOptions } from "./data-plane.ts";
import { backendOf } from "./kernel-devices.ts";
import type { KernelDevice, KernelDevices } from "./kernel-devices.ts";
import { deviceTable, reopenTable } from "./restart.ts";
import type { OpenRequest, ServedConnection, ServedVolume, VolumeHost } from "./volume-host.ts";

export interface AttachmentParts {
  host: VolumeHost;
  kernel: KernelDevices;
  records: AttachmentRecords;
  clock: Clock;
  log: Log;
  nodeId: string;
}

type Phase = "opening" | "serving" | "attached" | "detaching" | "closed" | "left";

const firstRetryMs = 100;
const longestRetryMs = 5000;

export class VolumeAttachment {
  readonly options: AttachOptions;
  readonly #parts: AttachmentParts;
  readonly #log: Log;
  readonly #backend: string;
  readonly #stop = new AbortController();
  #phase: Phase = "opening";
  #failure: string | undefined;
  /** The failure that the volume itself told of. */
  #volumeFailure: string | undefined;
  #volume: ServedVolume | undefined;
  #connection: ServedConnection | undefined;
  #device: KernelDevice | undefined;
  /** Our end of a connection that the kernel was given before the volume was open; undefined where it took none. */
  #early: Promise<number | undefined> | undefined;
  /** The attach or recovery that is under way; never rejects. */
  #settled: Promise<void> = Promise.resolve();
  #renewing: Promise<void> | undefined;
  #detaching: Promise<void> | undefined;

  constructor(parts: AttachmentParts, options: AttachOptions) {
    this.#parts = parts;
    this.options = options;
    this.#log = parts.log.child({ volumeId: options.volumeId });
    this.#backend = backendOf(parts.nodeId, options.volumeId);
  }

  get phase(): Phase {
    return this.#phase;
  }

  get failure(): string | undefined {
    return this.#failure;
  }

  /** Resolves when an attach, recovery or renewal under way has ended, well or not: the device takes I/O or never will. */
  async ready(): Promise<void> {
    await this.#settled;
    await this.#renewing;
  }

  /** Takes the volume and connects it to a free device. On an error everything is undone; what cannot be is left to detach. */
  attach(): Promise<void> {
    const running = this.#attach();
    this.#settled = running.catch(() => {});
    return running;
  }

  /**
   * After a restart: reopens the volume of `record` and gives `device` its new socket; without a device uploads what is
   * left and closes. Retries until it is decided or handOver is called; rejects only for a bug.
   */
  recover(record: AttachmentRecord, device: KernelDevice | undefined): Promise<void> {
    this.#device = device;
    if (device !== undefined) this.#early = this.#connectEarly(device);
    const running = this.#recover(record, device);
    this.#settled = running.catch(() => {});
    return running;
  }

  /** Joins a detach that runs, goes on with one that failed. "in-use" while something is seen to use the device. */
  detach(): Promise<void> {
    this.#detaching ??= this.#detach().finally(() => {
      this.#detaching = undefined;
    });
    return this.#detaching;
  }

  /** Answers what is in flight and leaves the volume for the next process; the kernel's device stays and waits. */
  async handOver(): Promise<void> {
    this.#stop.abort();
    if (this.#phase !== "attached") {
      if (this.#phase === "opening" || this.#phase === "serving") this.#phase = "left";
      return;
    }
    this.#phase = "left";
    await this.#renewing;
    await this.#connection?.drain();
    await this.#volume?.leave();
  }

  /** Returns once everything written before is in the store. */
  async flush(): Promise<void> {
    await this.#settled;
    if (this.#volume === undefined || this.#failure !== undefined) throw this.#unusable();
    await this.#volume.drain();
  }

  async status(): Promise<Attachment> {
    const volume = this.#volume;
    const status = await volume?.status().catch(ignoreClosed);
    return {
      volumeId: this.options.volumeId,
      state: this.#state(),
      devicePath: this.#phase === "opening" || this.#phase === "serving" ? "" : (this.#device?.devicePath ?? ""),
      sizeBytes: volume?.sizeBytes ?? 0,
      blockSizeBytes: volume?.blockSizeBytes ?? 0,
      readOnly: this.options.readOnly,
      neverWritten: status?.neverWritten ?? false,
      epoch: status?.epoch ?? 0,
      dirtyBytes: status?.dirtyBytes ?? 0,
      behindSeconds: (status?.behindMs ?? 0) / 1000,
      failure: this.#failure ?? "",
    };
  }

  #state(): AttachmentState {
    switch (this.#phase) {
      case "opening":
      case "serving":
      case "detaching":
        return this.#phase;
      case "closed":
        return "detaching";
      default:
        return this.#failure === undefined ? "attached" : "failed";
    }
  }

  #unusable(): OperationError {
    const failure = this.#failure ?? "it is not open yet";
    return new OperationError("in-use", `the attachment cannot be used (${failure}): detach it first`, {
      context: { volumeId: this.options.volumeId },
    });
  }

  #openRequest(mode: "take" | "resume", clientWaits: boolean): OpenRequest {
    const { volumeId, location, secrets, readOnly, durability, publication } = this.options;
    return { volumeId, location, secrets, readOnly, durability, publication, mode, clientWaits };
  }

  async #attach(): Promise<void> {
    const { host, records, kernel } = this.#parts;
    await this.#freeStrayDevices();
    try {
      const volume = await host.open(this.#openRequest("take", false));
      this.#adopt(volume);
      this.#mustBe("opening");
      this.#phase = "serving";
      const { sizeBytes, blockSizeBytes, readOnly } = volume;
      await records.write({ options: this.options, backend: this.#backend, sizeBytes, blockSizeBytes });
      const { kernelFd, connection } = await this.#serve(volume);
      this.#connection = connection;
      this.#device = await kernel.connect({
        fd: kernelFd,
        backend: this.#backend,
        sizeBytes,
        blockSizeBytes,
        readOnly,
      });
      this.#mustBe("serving");
      this.#phase = "attached";
      this.#watch(connection);
      this.#log.info("attached", { operation: "attach", devicePath: this.#device.devicePath, sizeBytes });
    } catch (error) {
      await this.#undoAttach(error);
      throw error;
    }
  }

  /** An identifier of ours on a device before the volume is open: left by a lost record. Never take over what is in use. */
  async #freeStrayDevices(): Promise<void> {
    try {
      await this.#mustNotBeInUse("a device of an earlier attachment is still in use");
      await this.#freeDevices();
    } catch (error) {
      this.#phase = "closed";
      throw error;
    }
  }

  async #undoAttach(error: unknown): Promise<void> {
    this.#log.warn("attach failed", { operation: "attach", error });
    if (this.#phase === "left") return;
    this.#phase = "detaching";
    try {
      await this.#release();
    } catch (cause) {
      this.#log.warn("a failed attach could not be undone yet", { operation: "attach", error: cause });
    }
  }

  async #recover(record: AttachmentRecord, device: KernelDevice | undefined): Promise<void> {
    let delayMs = firstRetryMs;
    for (;;) {
      const done = await this.#tryReopen(record, device);
      if (done || this.#stop.signal.aborted) return;
      await this.#sleep(delayMs);
      if (this.#stop.signal.aborted) return;
      delayMs = Math.min(delayMs * 2, longestRetryMs);
    }
  }

  /** One attempt; true when nothing is left to try. */
  async #tryReopen(record: AttachmentRecord, device: KernelDevice | undefined): Promise<boolean> {
    const outcome = await this.#reopen(device !== undefined);
    const found = { outcome: outcome?.kind ?? "ok", device: device === undefined ? "no" : "yes" } as const;
    const { action } = reopenTable.decide(found);
    const fields = { operation: "resume", action, error: outcome };
    if (outcome !== undefined) this.#log.warn("an attachment could not be resumed", fields);
    if (this.#phase === "left") return true;
    switch (action) {
      case "retry":
        this.#failure = outcome === undefined ? undefined : `not resumed yet: ${outcome.message}`;
        return false;
      case "forget":
      case "close":
        this.#failure = undefined;
        this.#phase = "detaching";
        return this.#tryRelease();
      case "keep":
        this.#failure = outcome?.message ?? "unknown";
        this.#phase = "attached";
        return true;
      case "break":
        await this.#break(record, outcome?.message ?? "unknown");
        break;
      default:
        this.#failure = this.#volumeFailure;
    }
    assert(device !== undefined, "only a device can be served");
    this.#phase = "attached";
    this.#renew("the server was restarted");
    return true;
  }

  async #reopen(clientWaits: boolean): Promise<OperationError | undefined> {
    if (this.#volume !== undefined) return undefined;
    try {
      this.#adopt(await this.#parts.host.open(this.#openRequest("resume", clientWaits)));
      return undefined;
    } catch (error) {
      return asOperationError(error, "unavailable", "the volume could not be opened");
    }
  }

  async #break(record: AttachmentRecord, failure: string): Promise<void> {
    const { volumeId, readOnly } = record.options;
    const { sizeBytes, blockSizeBytes } = record;
    this.#volume = await this.#parts.host.openBroken({ volumeId, sizeBytes, blockSizeBytes, readOnly, failure });
    this.#failure = failure;
    this.#log.error("the device answers errors from now on: unmount and detach it", { operation: "resume", failure });
  }

  async #tryRelease(): Promise<boolean> {
    try {
      await this.#release();
      return true;
    } catch (error) {
      this.#log.warn("an attachment could not be closed yet", { operation: "detach", error });
      return false;
    }
  }

  #adopt(volume: ServedVolume): void {
    this.#volume = volume;
    volume.onFailure((failure) => {
      this.#volumeFailure = failure;
      this.#failure = failure;
      this.#log.error("the volume failed: its device answers errors until it is detached", { failure });
    });
  }

  async #serve(volume: ServedVolume): Promise<{ kernelFd: number; connection: ServedConnection }> {
    const { kernelFd, serverFd } = this.#parts.kernel.socketPair();
    try {
      return { kernelFd, connection: await serveKernel(volume, serverFd) };
    } catch (error) {
      this.#parts.kernel.closeFd(kernelFd);
      throw error;
    }
  }

  /** Renews the connection as soon as it ends while the attachment lives. */
  #watch(connection: ServedConnection): void {
    this.#connection = connection;
    void connection.closed.then((reason) => {
      if (this.#connection === connection) this.#renew(reason);
    });
  }

  #renew(reason: string): void {
    if (this.#phase !== "attached" || this.#renewing !== undefined) return;
    this.#log.warn("the kernel's connection ended: giving it a new one", { operation: "reconnect", reason });
    this.#renewing = this.#renewUntilDone().finally(() => {
      this.#renewing = undefined;
    });
  }

  async #renewUntilDone(): Promise<void> {
    let delayMs = firstRetryMs;
    while (this.#phase === "attached") {
      try {
        await this.#renewOnce();
        this.#log.info("the kernel's connection is renewed", { operation: "reconnect" });
        return;
      } catch (error) {
        this.#log.warn("the kernel's connection could not be renewed", { operation: "reconnect", error });
        if (isKind(error, "not-found")) {
          this.#failure ??= `the kernel device is gone: ${describe(error)}`;
          return;
        }
      }
      await this.#sleep(delayMs);
      delayMs = Math.min(delayMs * 2, longestRetryMs);
    }
  }

  /** Never rejects: where the kernel takes no connection now, it is given one when the volume is open. */
  async #connectEarly(device: KernelDevice): Promise<number | undefined> {
    const { kernel } = this.#parts;
    const { kernelFd, serverFd } = kernel.socketPair();
    try {
      await kernel.reconnect(device, kernelFd);
      return serverFd;
    } catch (error) {
      this.#log.info("the kernel has taken no connection yet", { operation: "resume", error });
      kernel.closeFd(serverFd);
      return undefined;
    }
  }

  async #renewOnce(): Promise<void> {
    const volume = this.#volume;
    const device = this.#device;
    assert(volume !== undefined && device !== undefined, "a connection is renewed for an open volume and its device");
    await this.#connection?.drain();
    const early = await this.#early;
    this.#early = undefined;
    const connection = early === undefined ? await this.#reconnect(volume, device) : await serveKernel(volume, early);
    this.#connection = connection;
    // Watched a turn later, when #renewing is cleared: a connection that has ended by then is renewed again.
    void Promise.resolve(this.#renewing).then(() => this.#watch(connection));
  }

  async #reconnect(volume: ServedVolume, device: KernelDevice): Promise<ServedConnection> {
    const { kernelFd, connection } = await this.#serve(volume);
    try {
      await this.#parts.kernel.reconnect(device, kernelFd);
      return connection;
    } catch (error) {
      await connection.drain();
      throw error;
    }
  }

  async #detach(): Promise<void> {
    await this.#settled;
    if (this.#phase === "closed") return;
    if (this.#phase === "left") {
      throw new OperationError("unavailable", "the server is stopping: try again once it is back", {
        context: { volumeId: this.options.volumeId },
      });
    }
    await this.#mustNotBeInUse("the device is in use");
    this.#phase = "detaching";
    await this.#release();
  }

  async #release(): Promise<void> {
    await this.#freeDevices();
    await this.#renewing;
    await this.#connection?.drain();
    this.#connection = undefined;
    await this.#closeVolume();
    await this.#parts.records.remove(this.options.volumeId);
    this.#phase = "closed";
    this.#log.info("detached", { operation: "detach" });
  }

  async #closeVolume(): Promise<void> {
    if (this.#volume === undefined) return;
    try {
      await this.#volume.close();
    } catch (error) {
      const failure = asOperationError(error, "unavailable", "the volume could not be closed");
      if (reopenTable.decide({ outcome: failure.kind, device: "no" }).action === "retry") throw failure;
      this.#log.error("the volume was closed without what it could not upload", {
        operation: "detach",
        error: failure,
      });
      // It has failed for good and is still open: closing it again lets go of it, so that it can be attached anew.
      await this.#volume.close();
    }
    this.#volume = undefined;
  }

  /** Whoever calls it knows that nobody uses them, or that nothing of ours can be behind them any more. */
  async #freeDevices(): Promise<void> {
    const { kernel } = this.#parts;
    for (const device of await kernel.list(this.#backend)) {
      const { action } = deviceTable.decide({ identifier: this.#identifierOf(device), usage: "free" });
      if (action === "free") await kernel.disconnect(device);
    }
    this.#device = undefined;
  }

  async #mustNotBeInUse(message: string): Promise<void> {
    const { kernel } = this.#parts;
    for (const device of await kernel.list(this.#backend)) {
      const usage = await kernel.usage(device);
      const identifier = this.#identifierOf(device);
      const { action } = deviceTable.decide({ identifier, usage: usage === undefined ? "free" : "in use" });
      if (action !== "refuse") continue;
      throw new OperationError("in-use", `${message} (${usage}): unmount it first`, {
        context: { volumeId: this.options.volumeId, device: device.devicePath },
      });
    }
  }

  /** The kernel is asked for identifiers that begin as ours does: "vol-1" is the beginning of "vol-10". */
  #identifierOf(device: KernelDevice): "this volume's" | "another's" {
    return device.backend === this.#backend ? "this volume's" : "another's";
  }

  #mustBe(phase: Phase): void {
    if (this.#phase === phase) return;
    throw new OperationError("unavailable", "the server is stopping: try again once it is back", {
      context: { volumeId: this.options.volumeId },
    });
  }

  async #sleep(ms: number): Promise<void> {
    try {
      await this.#parts.clock.sleep(ms, this.#stop.signal);
    } catch (error) {
      if (!this.#stop.signal.aborted) throw error;
    }
  }
}

/** Serves the kernel at our end of a connection, which is the volume's from now on. */
function serveKernel(volume: ServedVolume, fd: number): Promise<ServedConnection> {
  return volume.serve({ fd, received: new Uint8Array(0), kernel: true });
}

/** A volume may close while its status is asked for. */
function ignoreClosed(error: unknown): undefined {
  if (!isKind(error, "not-found")) throw error;
}
