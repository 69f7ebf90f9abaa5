/**
 * The serving end of worker-messages.ts: open volumes and their connections, in one thread. How a volume is opened and
 * what a connection is are given, so that it runs in a test without threads.
 * Invariants: a volume is open at most once; it is closed or left only after its connections have closed; a file
 * descriptor that arrives is owned from then on, also where the call fails.
 * A bug here (anything but an OperationError) must end the process: it is thrown, never answered.
 */
import { assert } from "../base/assert.ts";
import { OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { BlockDevice } from "../block/device.ts";
import type { VolumeId } from "../volume/identity.ts";
import type { VolumeStatus } from "../volume/status.ts";
import type { BrokenRequest, OpenRequest } from "./volume-host.ts";
import type { CallMessage, CallName, OpenedVolume, Port, WorkerCalls, WorkerMessage } from "./worker-messages.ts";

/** A volume of the engine with all that was opened for it. */
export interface HostedVolume {
  readonly blockSizeBytes: number;
  /** For the kernel: requests are multiples of blockSizeBytes. */
  readonly device: BlockDevice;
  /** For other clients: any range. */
  readonly byteDevice: BlockDevice;
  status(): VolumeStatus;
  drain(): Promise<void>;
  leave(): Promise<void>;
  close(): Promise<void>;
  onFailure(listener: (failure: string) => void): void;
}

export interface HostedConnection {
  /** Never rejects; resolves when nothing of the connection can take effect any more. */
  readonly closed: Promise<string>;
  /** Answers what is in flight and takes no more; resolves also when the connection closed. */
  drain(): Promise<void>;
  destroy(): Promise<void>;
}

export interface VolumeWorkerParts {
  open(request: OpenRequest): Promise<HostedVolume>;
  /** What answers errors in the place of a volume that may not be served. */
  openBroken(request: BrokenRequest): HostedVolume;
  /** Starts to serve `device` on the socket. */
  connect(options: { fd: number; device: BlockDevice; received: Uint8Array; kernel: boolean }): HostedConnection;
  closeFd(fd: number): void;
  metrics(): Promise<readonly object[]>;
  stop(): Promise<void>;
  log: Log;
}

type Handlers = { [Name in CallName]: (request: WorkerCalls[Name]["request"]) => Promise<WorkerCalls[Name]["result"]> };

export class VolumeWorker {
  readonly #parts: VolumeWorkerParts;
  readonly #port: Port<WorkerMessage, CallMessage>;
  readonly #volumes = new Map<VolumeId, HostedVolume>();
  readonly #opening = new Set<VolumeId>();
  readonly #connections = new Map<number, HostedConnection>();
  readonly #handlers: Handlers;

  constructor(parts: VolumeWorkerParts, port: Port<WorkerMessage, CallMessage>) {
    this.#parts = parts;
    this.#port = port;
    this.#handlers = {
      open: (request) => this.#open(request),
      openBroken: (request) => this.#openBroken(request),
      status: async ({ volumeId }) => this.#must(volumeId).status(),
      serve: (request) => this.#serve(request),
      drainConnection: ({ connection }) => this.#drainConnection(connection),
      destroyConnection: async ({ connection }) => {
        await this.#connections.get(connection)?.destroy();
        return undefined;
      },
      drain: ({ volumeId }) => this.#finish(this.#must(volumeId).drain()),
      leave: ({ volumeId }) => this.#end(volumeId, (volume) => volume.leave()),
      close: ({ volumeId }) => this.#end(volumeId, (volume) => volume.close()),
      metrics: () => parts.metrics(),
      stop: () => this.#finish(parts.stop()),
    };
    port.on("message", (message) => void this.#answer(message));
  }

  async #answer(message: CallMessage): Promise<void> {
    const { id, name } = message;
    try {
      const handler = this.#handlers[name] as (request: unknown) => Promise<unknown>;
      this.#port.postMessage({ type: "result", id, result: await handler(message.request) });
    } catch (error) {
      if (!(error instanceof OperationError)) throw error;
      this.#port.postMessage({ type: "error", id, error: { kind: error.kind, message: error.message } });
    }
  }

  async #finish(done: Promise<void>): Promise<undefined> {
    await done;
    return undefined;
  }

  async #open(request: OpenRequest): Promise<OpenedVolume> {
    const { volumeId } = request;
    if (this.#volumes.has(volumeId) || this.#opening.has(volumeId)) {
      throw new OperationError("in-use", "the volume is open already: a kernel device and exports exclude each other", {
        context: { volumeId },
      });
    }
    this.#opening.add(volumeId);
    try {
      return this.#adopt(volumeId, await this.#parts.open(request));
    } finally {
      this.#opening.delete(volumeId);
    }
  }

  async #openBroken(request: BrokenRequest): Promise<OpenedVolume> {
    assert(!this.#volumes.has(request.volumeId), "a volume that is open is not replaced by a broken one");
    return this.#adopt(request.volumeId, this.#parts.openBroken(request));
  }

  #adopt(volumeId: VolumeId, volume: HostedVolume): OpenedVolume {
    this.#volumes.set(volumeId, volume);
    volume.onFailure((failure) => this.#port.postMessage({ type: "volumeFailed", volumeId, failure }));
    const { sizeBytes, readOnly } = volume.device;
    return { sizeBytes, blockSizeBytes: volume.blockSizeBytes, readOnly };
  }

  async #serve(request: WorkerCalls["serve"]["request"]): Promise<undefined> {
    const { fd, received, kernel, connection: number } = request;
    const volume = this.#volumes.get(request.volumeId);
    if (volume === undefined) {
      this.#parts.closeFd(fd);
      throw notOpen(request.volumeId);
    }
    const device = kernel ? volume.device : volume.byteDevice;
    const connection = this.#parts.connect({ fd, device, received, kernel });
    this.#connections.set(number, connection);
    void connection.closed.then((reason) => {
      this.#connections.delete(number);
      this.#port.postMessage({ type: "connectionClosed", connection: number, reason });
    });
    return undefined;
  }

  async #drainConnection(number: number): Promise<undefined> {
    const connection = this.#connections.get(number);
    if (connection === undefined) return undefined;
    await connection.drain();
    await connection.destroy();
    return undefined;
  }

  async #end(volumeId: VolumeId, end: (volume: HostedVolume) => Promise<void>): Promise<undefined> {
    const volume = this.#must(volumeId);
    await end(volume);
    this.#volumes.delete(volumeId);
    return undefined;
  }

  #must(volumeId: VolumeId): HostedVolume {
    const volume = this.#volumes.get(volumeId);
    if (volume === undefined) throw notOpen(volumeId);
    return volume;
  }
}

function notOpen(volumeId: VolumeId): OperationError {
  return new OperationError("not-found", "the volume is not open here", { context: { volumeId } });
}
