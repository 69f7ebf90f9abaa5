/**
 * The calling end of worker-messages.ts: a VolumeHost over several threads. A volume is served by one and the same
 * thread of the pool, chosen by its id, also after a restart: its part of the cache is there.
 * A thread that dies is a bug or lack of memory; its volumes cannot be told from it any more, so the whole process must
 * end (the owner of the threads sees to that) and recover.
 */
import { assert } from "../base/assert.ts";
import { crc32 } from "../base/checksum.ts";
import type { VolumeId } from "../volume/identity.ts";
import type { VolumeStatus } from "../volume/status.ts";
import type {
  BrokenRequest,
  OpenRequest,
  ServedConnection,
  ServedVolume,
  ServeRequest,
  VolumeHost,
} from "./volume-host.ts";
import { errorOfMessage } from "./worker-messages.ts";
import type { CallMessage, CallName, OpenedVolume, Port, WorkerCalls, WorkerMessage } from "./worker-messages.ts";

export type WorkerPort = Port<CallMessage, WorkerMessage>;

/** Index of the thread that serves a volume: stable for a given number of threads. */
export function threadOf(volumeId: VolumeId, threads: number): number {
  return crc32(Buffer.from(volumeId)) % threads;
}

export class WorkerPool implements VolumeHost {
  readonly #workers: WorkerClient[];

  constructor(ports: readonly WorkerPort[]) {
    assert(ports.length > 0, "a pool has a thread");
    this.#workers = ports.map((port) => new WorkerClient(port));
  }

  async open(request: OpenRequest): Promise<ServedVolume> {
    const worker = this.#workerOf(request.volumeId);
    return worker.volume(request.volumeId, await worker.call("open", request));
  }

  async openBroken(request: BrokenRequest): Promise<ServedVolume> {
    const worker = this.#workerOf(request.volumeId);
    return worker.volume(request.volumeId, await worker.call("openBroken", request));
  }

  /** One snapshot of observability/metrics.ts per thread. */
  async metrics(): Promise<(readonly object[])[]> {
    return await Promise.all(this.#workers.map((worker) => worker.call("metrics", undefined)));
  }

  /** Closes what the threads hold apart from volumes. */
  async stop(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.call("stop", undefined)));
  }

  #workerOf(volumeId: VolumeId): WorkerClient {
    return this.#workers[threadOf(volumeId, this.#workers.length)];
  }
}

interface PendingCall {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

class WorkerClient {
  readonly #port: WorkerPort;
  readonly #calls = new Map<number, PendingCall>();
  readonly #connectionEnds = new Map<number, (reason: string) => void>();
  readonly #volumes = new Map<VolumeId, RemoteVolume>();
  /** Failures told before the answer to `open` was handled. */
  readonly #earlyFailures = new Map<VolumeId, string>();
  #nextId = 1;

  constructor(port: WorkerPort) {
    this.#port = port;
    port.on("message", (message) => this.#receive(message));
  }

  call<Name extends CallName>(name: Name, request: WorkerCalls[Name]["request"]): Promise<WorkerCalls[Name]["result"]> {
    const id = this.#nextId;
    this.#nextId += 1;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject });
      this.#port.postMessage({ id, name, request } as CallMessage);
    });
  }

  volume(volumeId: VolumeId, opened: OpenedVolume): RemoteVolume {
    const volume = new RemoteVolume(this, volumeId, opened);
    this.#volumes.set(volumeId, volume);
    const failure = this.#earlyFailures.get(volumeId);
    this.#earlyFailures.delete(volumeId);
    if (failure !== undefined) volume.failed(failure);
    return volume;
  }

  forget(volumeId: VolumeId): void {
    this.#volumes.delete(volumeId);
    this.#earlyFailures.delete(volumeId);
  }

  async serve(volumeId: VolumeId, request: ServeRequest): Promise<ServedConnection> {
    const connection = this.#nextId;
    this.#nextId += 1;
    const { promise: closed, resolve } = Promise.withResolvers<string>();
    this.#connectionEnds.set(connection, resolve);
    try {
      await this.call("serve", { ...request, volumeId, connection });
    } catch (error) {
      this.#connectionEnds.delete(connection);
      throw error;
    }
    const end = async (name: "drainConnection" | "destroyConnection"): Promise<void> => {
      await this.call(name, { connection });
      await closed;
    };
    return { closed, drain: () => end("drainConnection"), destroy: () => end("destroyConnection") };
  }

  #receive(message: WorkerMessage): void {
    switch (message.type) {
      case "result":
        this.#take(message.id).resolve(message.result);
        return;
      case "error":
        this.#take(message.id).reject(errorOfMessage(message.error));
        return;
      case "connectionClosed":
        this.#connectionEnds.get(message.connection)?.(message.reason);
        this.#connectionEnds.delete(message.connection);
        return;
      case "loaded":
      case "ready":
        return;
      case "volumeFailed": {
        const volume = this.#volumes.get(message.volumeId);
        if (volume === undefined) this.#earlyFailures.set(message.volumeId, message.failure);
        else volume.failed(message.failure);
      }
    }
  }

  #take(id: number): PendingCall {
    const call = this.#calls.get(id);
    assert(call !== undefined, `a thread answered call ${id}, which nobody made`);
    this.#calls.delete(id);
    return call;
  }
}

class RemoteVolume implements ServedVolume {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly #worker: WorkerClient;
  readonly #volumeId: VolumeId;
  #failure: string | undefined;
  #listener: ((failure: string) => void) | undefined;

  constructor(worker: WorkerClient, volumeId: VolumeId, opened: OpenedVolume) {
    this.#worker = worker;
    this.#volumeId = volumeId;
    this.sizeBytes = opened.sizeBytes;
    this.blockSizeBytes = opened.blockSizeBytes;
    this.readOnly = opened.readOnly;
  }

  status(): Promise<VolumeStatus> {
    return this.#worker.call("status", { volumeId: this.#volumeId });
  }

  serve(request: ServeRequest): Promise<ServedConnection> {
    return this.#worker.serve(this.#volumeId, request);
  }

  async drain(): Promise<void> {
    await this.#worker.call("drain", { volumeId: this.#volumeId });
  }

  async leave(): Promise<void> {
    await this.#worker.call("leave", { volumeId: this.#volumeId });
    this.#worker.forget(this.#volumeId);
  }

  async close(): Promise<void> {
    await this.#worker.call("close", { volumeId: this.#volumeId });
    this.#worker.forget(this.#volumeId);
  }

  onFailure(listener: (failure: string) => void): void {
    this.#listener = listener;
    if (this.#failure !== undefined) listener(this.#failure);
  }

  /** For the worker's messages. */
  failed(failure: string): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    this.#listener?.(failure);
  }
}
