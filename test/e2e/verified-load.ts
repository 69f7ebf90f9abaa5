/**
 * A load of fio that reads back everything it writes, again and again on one file: no error may come of it, whatever
 * happens beneath, and the longest wait of its requests tells how long its users were held up.
 */
import { run } from "./content.ts";

const defaultSizeKib = 4096;

interface FioDirection {
  total_ios: number;
  lat_ns: { max: number };
}
interface FioJob {
  error: number;
  read: FioDirection;
  write: FioDirection;
  sync: { lat_ns: { max: number } };
}

/** Loads of fio on a file, one after another, each of which writes every block once and reads all back. */
export class VerifiedLoad {
  writes = 0;
  errors = 0;
  longestWaitMs = 0;
  #isRunning = true;
  readonly #done: Promise<void>;

  constructor(
    file: string,
    { firstSeed = 1, sizeKib = defaultSizeKib }: { firstSeed?: number; sizeKib?: number } = {},
  ) {
    this.#done = this.#work(file, firstSeed, sizeKib);
    // Its failure is told by stop().
    this.#done.catch(() => (this.#isRunning = false));
  }

  get isRunning(): boolean {
    return this.#isRunning;
  }

  /** Lets the present one end. Rejects where any of them has met an error or other bytes than it wrote. */
  async stop(): Promise<void> {
    this.#isRunning = false;
    await this.#done;
  }

  async #work(file: string, firstSeed: number, sizeKib: number): Promise<void> {
    for (let seed = firstSeed; this.#isRunning; seed += 1) {
      const { error, read, write, sync } = await verifiedLoad(file, { seed, sizeKib });
      this.writes += write.total_ios;
      this.errors += error;
      const waits = [read, write, sync].map(({ lat_ns: { max } }) => max / 1e6);
      this.longestWaitMs = Math.max(this.longestWaitMs, ...waits);
    }
  }
}

/**
 * Writes every block of a file once, in random order with fsyncs, and reads all back, past the page cache. Not for a
 * time: fio leaves unread what it wrote last when its time is over. With a seed of its own, so that what an earlier
 * load has left in a block is not taken for its own.
 */
async function verifiedLoad(file: string, { seed, sizeKib }: { seed: number; sizeKib: number }): Promise<FioJob> {
  const what = "--name=load --rw=randwrite --bs=4k --ioengine=psync --direct=1 --fsync=16";
  const how = "--verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0 --output-format=json";
  const flags = [
    `--filename=${file}`,
    `--size=${sizeKib}k`,
    `--randseed=${seed}`,
    ...what.split(" "),
    ...how.split(" "),
  ];
  const { stdout } = await run("fio", flags);
  return (JSON.parse(stdout.slice(stdout.indexOf("{"))) as { jobs: FioJob[] }).jobs[0];
}
