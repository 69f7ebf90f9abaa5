/**
 * Starts the threads that serve volumes, each with its share of memory and cache. A thread loads everything first, and
 * touches nothing that another process may own before it is told to begin.
 */
import { MessageChannel, Worker } from "node:worker_threads";
import { WorkerPool } from "../attachment/worker-pool.ts";
import type { WorkerMessage } from "../attachment/worker-messages.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { StoreSettings } from "../store/open-store.ts";
import type { FlagValues } from "./flags.ts";
import type { ServerWorkerData } from "./server-worker.ts";

const maxDefaultThreads = 4;
const smallestUploadBytes = 64 * 1024 ** 2;
/** Memory for what is on its way from the store: so much over all threads, and so much for each besides. */
const sharedReadBytes = 32 * 1024 ** 2;
const threadReadBytes = 8 * 1024 ** 2;
/** Garbage of requests dies young: more room for it makes nothing faster, and took 20 to 40 MiB more of a busy thread. */
const resourceLimits = { maxYoungGenerationSizeMb: 12 };

export interface ThreadsOptions {
  values: FlagValues;
  settings: StoreSettings;
  nodeId: string;
  log: Log;
  cores: number;
  /** They have time before they begin, and load what else they would load in time. */
  isStandby: boolean;
}

/** One fewer than there are cores, so that control is never starved; at least one, at most four. */
export function threadCount(asked: number, cores: number): number {
  return asked > 0 ? asked : Math.min(Math.max(cores - 1, 1), maxDefaultThreads);
}

export interface Threads {
  /** Calls may be made at once, and are answered once their thread has begun. */
  pool: WorkerPool;
  /** Resolves when all threads could begin; rejects where one cannot be started. */
  loaded: Promise<void>;
  /**
   * Has them begin, and resolves when all take calls; rejects where one cannot. From then on, a thread that ends by
   * itself ends the process.
   */
  begin(): Promise<void>;
}

export function startThreads(options: ThreadsOptions): Threads {
  const { log } = options;
  const threads = Array.from({ length: threadCount(options.values.threads, options.cores) }, (_, thread) => thread);
  const started = threads.map((thread) => startThread(options, thread, threads.length));
  const workers = started.map(({ worker }) => worker);
  const loaded = Promise.all(workers.map((worker) => untilSaid(worker, "loaded")));
  const ready = Promise.all(workers.map((worker) => untilSaid(worker, "ready")));
  for (const promise of [loaded, ready]) promise.catch(() => {});
  return {
    pool: new WorkerPool(workers),
    loaded: loaded.then(() => {}),
    begin: async () => {
      for (const { begin } of started) begin();
      await ready;
      for (const [thread, worker] of workers.entries()) endWith(worker, thread, log);
    },
  };
}

function startThread(
  { values, settings, nodeId, isStandby }: ThreadsOptions,
  thread: number,
  threads: number,
): { worker: Worker; begin: () => void } {
  const share = (bytes: number): number => Math.floor(bytes / threads);
  const { port1, port2 } = new MessageChannel();
  const data: ServerWorkerData = {
    begin: port2,
    isStandby,
    thread,
    nodeId,
    settings,
    logLevel: values.logLevel,
    stateDir: values.stateDir,
    uploadIntervalMs: values.uploadIntervalMs,
    cacheSizeBytes: share(values.cacheSize),
    journalSizeBytes: values.journalSize,
    mapBudgetBytes: share(values.mapMemory),
    uploadBudgetBytes: Math.max(share(values.uploadMemory), smallestUploadBytes),
    readBudgetBytes: share(sharedReadBytes) + threadReadBytes,
  };
  const program = new URL("./server-worker.ts", import.meta.url);
  const worker = new Worker(program, { workerData: data, transferList: [port2], resourceLimits });
  return { worker, begin: () => port1.postMessage("begin") };
}

function endWith(worker: Worker, thread: number, log: Log): void {
  worker.on("error", (error) => {
    const { stack } = error as Error;
    log.error("a thread has died: the process ends", { operation: "bug", thread, error: describe(error), stack });
    process.exit(70);
  });
  worker.on("exit", () => process.exit(70));
}

/** Rejects where the thread ends without. */
function untilSaid(worker: Worker, type: "loaded" | "ready"): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (cause: unknown): void =>
      reject(new OperationError("unavailable", `a thread could not be started: ${describe(cause)}`, { cause }));
    worker.once("error", fail);
    worker.once("exit", (code) => fail(new Error(`it ended with code ${code}`)));
    worker.on("message", (message: WorkerMessage) => {
      if (message.type === type) resolve();
    });
  });
}
