/**
 * The data-plane server of one simulated node, for the life of one process: the real engine, volume worker, worker
 * pool, attachment registry and NBD transmission, put together as src/cli/server.ts and server-worker.ts do, over the
 * simulated store, disk, sockets and kernel.
 */
import type { Clock } from "../../src/base/clock.ts";
import { isKind } from "../../src/base/errors.ts";
import type { Log } from "../../src/base/log.ts";
import type { MemoryDisk } from "../../src/base/memory-disk.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { AttachmentRecords } from "../../src/attachment/attachment-record.ts";
import { AttachmentRegistry } from "../../src/attachment/registry.ts";
import { brokenVolume } from "../../src/attachment/broken-device.ts";
import type { HostedConnection, HostedVolume, VolumeWorkerParts } from "../../src/attachment/volume-worker.ts";
import { VolumeWorker } from "../../src/attachment/volume-worker.ts";
import type { OpenRequest } from "../../src/attachment/volume-host.ts";
import { WorkerPool } from "../../src/attachment/worker-pool.ts";
import type { CallMessage, Port, WorkerMessage } from "../../src/attachment/worker-messages.ts";
import { openHostedVolume } from "../../src/cli/hosted-volumes.ts";
import { SlabPool } from "../../src/nbd/slab-pool.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { type VolumeGauges, VolumeMetrics } from "../../src/observability/metrics.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { Engine } from "../../src/volume/engine.ts";
import { fenceForDeletion } from "../../src/volume/fencing.ts";
import type { SimKernel } from "./kernel.ts";
import { ProcessClock, type SimProcess } from "./sim-process.ts";
import type { StoreService } from "./sim-store.ts";
import type { Swarm } from "./swarm.ts";

export interface ServerParts {
  nodeId: string;
  clock: Clock;
  skewMs: number;
  random: SeededRandom;
  swarm: Swarm;
  log: Log;
  service: StoreService;
  kernel: SimKernel;
  /** State (journals, cache) and run directory. */
  state: MemoryDisk;
  run: MemoryDisk;
  /** Called before the engine opens a volume, and so before it reads the journal. */
  opening: () => void;
  /** Called when the engine has opened a volume and before anybody is served. */
  opened: (request: OpenRequest, volume: HostedVolume, server: SimServer) => Promise<void>;
  closed: (request: OpenRequest, volume: HostedVolume, server: SimServer) => void;
  /** Called when the engine refuses as corrupt what a device waits for. */
  refused: () => void;
}

export class SimServer {
  readonly process: SimProcess;
  readonly parts: ServerParts;
  readonly clock: Clock;
  #registry: AttachmentRegistry | undefined;
  #pool: WorkerPool | undefined;
  readonly #slabs = new SlabPool();

  constructor(process: SimProcess, parts: ServerParts) {
    this.process = process;
    this.parts = parts;
    this.clock = new ProcessClock(parts.clock, process, parts.skewMs);
  }

  /** Undefined while the process starts. */
  get registry(): AttachmentRegistry | undefined {
    return this.process.dead ? undefined : this.#registry;
  }

  /** Starts and recovers; does not resolve where the process dies meanwhile. */
  async start(): Promise<void> {
    const { nodeId, random, swarm, log, service, kernel, state, run } = this.parts;
    const { clock, process } = this;
    const cacheDisk = swarm.cacheBytes > 0 ? await state.directory("cache") : undefined;
    const engine = await Engine.start({
      clock,
      random,
      log,
      nodeId,
      cacheDisk,
      cacheSizeBytes: swarm.cacheBytes,
      mapBudgetBytes: swarm.mapBudgetBytes,
      uploadBudgetBytes: 4 * 1024 * 1024,
      readBudgetBytes: 1024 * 1024,
      journalSizeBytes: swarm.journalSizeBytes,
      journalFileBytes: swarm.journalFileBytes,
      uploadIntervalMs: swarm.uploadIntervalMs,
    });
    const journals = await state.directory("journal");
    const store = new RetryingStore(service.reach(process, nodeId), { clock, random, log });
    const catalog = new Catalog({
      store,
      clock,
      random,
      log,
      fenceForDeletion: (volume) => fenceForDeletion({ store, clock, random }, volume, nodeId),
    });
    const hosted = {
      engine,
      stores: { of: () => store, catalog: () => catalog },
      journals,
      metrics: {
        addVolume: (_id: string, gauges: () => VolumeGauges) => new VolumeMetrics(gauges),
        removeVolume: () => undefined,
      },
      clock,
      nodeId,
    };
    const ports = portPair(clock);
    const worker: VolumeWorkerParts = {
      log,
      open: async (request) => {
        this.parts.opening();
        const volume = await openHostedVolume(hosted, request).catch((error: unknown) => {
          if (request.clientWaits && isKind(error, "corrupt")) this.parts.refused();
          throw error;
        });
        await this.parts.opened(request, volume, this);
        return this.#watched(request, volume);
      },
      openBroken: brokenVolume,
      connect: (options) => this.#connect(options),
      closeFd: (fd) => kernel.closeFd(fd),
      metrics: async () => [],
      stop: async () => {
        await engine.close();
        await store.close();
      },
    };
    const volumeWorker = new VolumeWorker(worker, ports.worker);
    this.#pool = new WorkerPool([ports.control]);
    const records = new AttachmentRecords(await run.directory("attachments"));
    const devices = kernel.controlledBy(process, () => clock.sleep(random.fraction() * 0.5));
    const registry = new AttachmentRegistry({
      host: this.#pool,
      kernel: devices,
      records,
      clock,
      log,
      nodeId,
    });
    await registry.recover();
    this.#registry = registry;
    void volumeWorker;
  }

  /** The orderly end of a process that is to be replaced: resolves when nothing of it is left to do. */
  async handOver(): Promise<void> {
    await this.#registry?.handOver();
    await this.#pool?.stop();
  }

  #watched(request: OpenRequest, volume: HostedVolume): HostedVolume {
    return {
      blockSizeBytes: volume.blockSizeBytes,
      device: volume.device,
      byteDevice: volume.byteDevice,
      status: () => volume.status(),
      drain: () => volume.drain(),
      leave: () => volume.leave(),
      close: async () => {
        await volume.close();
        this.parts.closed(request, volume, this);
      },
      onFailure: (listener) => volume.onFailure(listener),
    };
  }

  #connect(options: Parameters<VolumeWorkerParts["connect"]>[0]): HostedConnection {
    const { fd, device, received, kernel } = options;
    const transmission = new Transmission(this.parts.kernel.takeSocket(fd), device, {
      onDrain: kernel ? "stop" : "refuse",
      pool: this.#slabs,
      ...(received.length === 0 ? {} : { leftover: Buffer.from(received) }),
    });
    return {
      closed: transmission.closed.then(({ reason, detail }) => (detail === "" ? reason : `${reason}: ${detail}`)),
      drain: () => transmission.drain(),
      destroy: () => transmission.destroy(),
    };
  }
}

/** The two ends between the control thread and the worker's: messages arrive in order, a moment later. */
function portPair(clock: Clock): {
  control: Port<CallMessage, WorkerMessage>;
  worker: Port<WorkerMessage, CallMessage>;
} {
  const toWorker = channel<CallMessage>(clock);
  const toControl = channel<WorkerMessage>(clock);
  return {
    control: { postMessage: toWorker.post, on: (_event, listener) => toControl.listen(listener) },
    worker: { postMessage: toControl.post, on: (_event, listener) => toWorker.listen(listener) },
  };
}

function channel<Message>(clock: Clock): {
  post: (message: Message) => void;
  listen: (to: (message: Message) => void) => void;
} {
  const queue: Message[] = [];
  let listener: ((message: Message) => void) | undefined;
  const post = (message: Message): void => {
    queue.push(message);
    clock.after(0, () => listener?.(queue.shift()!));
  };
  return {
    post,
    listen: (to) => {
      listener = to;
    },
  };
}
