/**
 * One thread of the server: an engine with its own cache directory and the sockets of its volumes. Started by server.ts
 * with plain data, spoken to by attachment/worker-messages.ts. A bug here ends the whole process (server.ts listens
 * for this thread's death), because its volumes cannot be told from it any more.
 */
import { once } from "node:events";
import { flushCompileCache } from "node:module";
import { join } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import type { MessagePort } from "node:worker_threads";
import { assert } from "../base/assert.ts";
import { quickenChecksums } from "../base/checksum.ts";
import { systemClock } from "../base/system-clock.ts";
import { openSystemDisk } from "../base/system-disk.ts";
import { systemRandom } from "../base/system-random.ts";
import type { Log } from "../base/log.ts";
import type { BlockDevice } from "../block/device.ts";
import type { HostedConnection } from "../attachment/volume-worker.ts";
import { VolumeWorker } from "../attachment/volume-worker.ts";
import type { WorkerMessage } from "../attachment/worker-messages.ts";
import { loadLibc } from "../nbd/kernel/libc.ts";
import { SlabPool } from "../nbd/slab-pool.ts";
import { connectionOfFd } from "../nbd/socket-connection.ts";
import { Transmission } from "../nbd/transmission.ts";
import { Metrics } from "../observability/metrics.ts";
import { preloadStore } from "../store/open-store.ts";
import type { StoreSettings } from "../store/open-store.ts";
import { Engine } from "../volume/engine.ts";
import { openBrokenVolume, openHostedVolume } from "./hosted-volumes.ts";
import type { FlagValues } from "./flags.ts";
import { inHugePages } from "./large-memory.ts";
import { startLogging } from "./process.ts";
import { Stores } from "./stores.ts";

/** What a thread is started with. Sizes are this thread's share. */
export interface ServerWorkerData extends Pick<FlagValues, "logLevel" | "uploadIntervalMs" | "stateDir"> {
  /** Its first message: begin. */
  begin: MessagePort;
  /** It has time before it begins. */
  isStandby: boolean;
  thread: number;
  nodeId: string;
  settings: StoreSettings;
  cacheSizeBytes: number;
  journalSizeBytes: number;
  mapBudgetBytes: number;
  uploadBudgetBytes: number;
  readBudgetBytes: number;
}

/** What a start without a standby does later: volumes are resumed by then. */
const resumeMs = 1000;

const data = workerData as ServerWorkerData;
assert(parentPort !== null, "the server's worker runs in a thread");
const { log, redactor } = startLogging(data, { process: "server", nodeId: data.nodeId, thread: data.thread });
const metrics = new Metrics();
const clock = systemClock;
const random = systemRandom;
const observer = metrics.storeObserver;
const stores = new Stores({ settings: data.settings, clock, random, log, redactor, observer });
const libc = await loadLibc();
if (data.isStandby) {
  await preloadStore(data.settings);
  await quicken();
}
parentPort.postMessage({ type: "loaded" } satisfies WorkerMessage);
await once(data.begin, "message");
data.begin.close();

const state = await openSystemDisk(data.stateDir, libc.readInMemory);
const cachePath = join(data.stateDir, "cache", String(data.thread));
const engine = await Engine.start({
  clock,
  random,
  log,
  nodeId: data.nodeId,
  cacheDisk: data.cacheSizeBytes > 0 ? await openSystemDisk(cachePath, libc.readInMemory) : undefined,
  cacheSizeBytes: data.cacheSizeBytes,
  mapBudgetBytes: data.mapBudgetBytes,
  uploadBudgetBytes: data.uploadBudgetBytes,
  allocateLarge: inHugePages(libc.preferHugePages, log),
  readBudgetBytes: data.readBudgetBytes,
  journalSizeBytes: data.journalSizeBytes,
  uploadIntervalMs: data.uploadIntervalMs,
});
const journals = await state.directory("journal");
const pool = new SlabPool();
metrics.setCache(() => {
  const { memoryHits, cacheHits, cacheMisses } = engine.stats();
  return { memoryHits, diskHits: cacheHits, misses: cacheMisses };
});
metrics.addGauge("s3block_store_away", "Threads for which a store does not answer.", () => stores.state().away);
metrics.addGauge(
  "s3block_store_waiting_requests",
  "Requests that wait until the store answers, or wants more of them.",
  () => stores.state().waitingRequests,
);
metrics.addGauge("s3block_map_memory_bytes", "Memory that loaded maps take.", () => engine.stats().mapBytes);
metrics.addGauge(
  "s3block_upload_memory_bytes",
  "Memory that uploads in flight take.",
  () => engine.stats().uploadBytes,
);
metrics.addGauge("s3block_cache_used_bytes", "Disk space that cached data takes.", () => engine.stats().cacheBytes);
metrics.addGauge("s3block_open_volumes", "Volumes that are open.", () => engine.stats().openVolumes);

new VolumeWorker(
  {
    log,
    open: (request) => openHostedVolume({ engine, stores, journals, metrics, clock, nodeId: data.nodeId }, request),
    openBroken: (request) => openBrokenVolume({ metrics, clock }, request),
    connect: (options) => connect(options, log),
    closeFd: (fd) => libc.close(fd),
    metrics: () => metrics.snapshot(),
    stop: async () => {
      await engine.close();
      await stores.close();
    },
  },
  parentPort,
);
parentPort.postMessage({ type: "ready" } satisfies WorkerMessage);
flushCompileCache();
if (!data.isStandby) void clock.sleep(resumeMs).then(quicken);

/** Users who were stalled by a start come first. */
async function quicken(): Promise<void> {
  const reason = await quickenChecksums();
  if (reason === undefined) log.debug("checksums by the processor's instructions", { operation: "start" });
  else log.warn("checksums take the processor more time than they need", { operation: "start", reason });
}

function connect(
  options: { fd: number; device: BlockDevice; received: Uint8Array; kernel: boolean },
  connectionLog: Log,
): HostedConnection {
  const { fd, device, received, kernel } = options;
  const transmission = new Transmission(connectionOfFd(fd, libc.receiveNow), device, {
    log: connectionLog,
    onDrain: kernel ? "stop" : "refuse",
    pool,
    ...(received.length === 0 ? {} : { leftover: Buffer.from(received) }),
  });
  return {
    closed: transmission.closed.then(({ reason, detail }) => (detail === "" ? reason : `${reason}: ${detail}`)),
    drain: () => transmission.drain(),
    destroy: () => transmission.destroy(),
  };
}
