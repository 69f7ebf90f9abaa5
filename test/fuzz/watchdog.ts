/**
 * Ends a process whose thread hangs, after saying in which case: a loop that never ends cannot be interrupted from
 * within. Runs on a thread of its own; beat() is all that the watched thread does. The patience is no measure of
 * speed: it is far beyond what any case takes on a slow and busy machine.
 */
import { writeSync } from "node:fs";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";

const PATIENCE_MS = 60_000;

interface Watched {
  beats: Int32Array<SharedArrayBuffer>;
  name: string;
}

export class Watchdog {
  readonly #beats = new Int32Array(new SharedArrayBuffer(4));
  readonly #worker: Worker;

  /** `name` is what was being done, for the message. */
  constructor(name: string) {
    const watched: Watched = { beats: this.#beats, name };
    this.#worker = new Worker(new URL(import.meta.url), { workerData: watched });
    this.#worker.unref();
  }

  /** Case `number` begins. */
  beat(number: number): void {
    Atomics.store(this.#beats, 0, number);
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }
}

function watch({ beats, name }: Watched): void {
  let last = Atomics.load(beats, 0);
  setInterval(() => {
    const now = Atomics.load(beats, 0);
    if (now === last) {
      writeSync(2, `${name} case=${now} hangs: no progress for ${PATIENCE_MS} ms\n`);
      process.kill(process.pid, "SIGKILL");
    }
    last = now;
  }, PATIENCE_MS);
}

if (!isMainThread && parentPort !== null) watch(workerData as Watched);
