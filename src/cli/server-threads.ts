/** Starts the threads that serve volumes, each with its share of memory and cache. */
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { WorkerPool } from "../attachment/worker-pool.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { StoreSettings } from "../store/open-store.ts";
import type { FlagValues } from "./flags.ts";
import type { ServerWorkerData } from "./server-worker.ts";

const maxDefaultThreads = 4;
const smallestUploadBytes = 64 * 1024 ** 2;
/** Memory for what is on its way from the store, over all threads. */
const readMemoryBytes = 64 * 1024 ** 2;
/** Garbage of requests dies young: more room for it makes nothing faster, and took 20 to 40 MiB more of a busy thread. */
const resourceLimits = { maxYoungGenerationSizeMb: 12 };

export interface WorkersOptions {
  values: FlagValues;
  settings: StoreSettings;
  nodeId: string;
  log: Log;
  cores: number;
}

/** One fewer than there are cores, so that control is never starved; at least one, at most four. */
export function threadCount(asked: number, cores: number): number {
  return asked > 0 ? asked : Math.min(Math.max(cores - 1, 1), maxDefaultThreads);
}

/**
 * Starts the threads. Calls may be made at once and are answered once their thread has started; `ready` resolves when
 * all have, and rejects where one cannot. From then on, a thread that ends by itself ends the process.
 */
export function startWorkers(options: WorkersOptions): { pool: WorkerPool; ready: Promise<void> } {
  const { values, settings, nodeId, log } = options;
  const threads = threadCount(values.threads, options.cores);
  const share = (bytes: number): number => Math.floor(bytes / threads);
  const workers = Array.from({ length: threads }, (_, thread) => {
    const data: ServerWorkerData = {
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
      readBudgetBytes: share(readMemoryBytes),
    };
    return new Worker(new URL("./server-worker.ts", import.meta.url), { workerData: data, resourceLimits });
  });
  const ready = Promise.all(workers.map(untilReady)).then(() => {
    for (const [thread, worker] of workers.entries()) endWith(worker, thread, log);
  });
  return { pool: new WorkerPool(workers), ready };
}

function endWith(worker: Worker, thread: number, log: Log): void {
  worker.on("error", (error) => {
    const { stack } = error as Error;
    log.error("a thread has died: the process ends", { operation: "bug", thread, error: describe(error), stack });
    process.exit(70);
  });
  worker.on("exit", () => process.exit(70));
}

/** The first message of a thread is that it takes calls. */
async function untilReady(worker: Worker): Promise<void> {
  try {
    await once(worker, "message");
  } catch (cause) {
    throw new OperationError("unavailable", `a thread could not be started: ${describe(cause)}`, { cause });
  }
}
