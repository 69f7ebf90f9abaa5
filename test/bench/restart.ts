/**
 * How long a device waits when its server is killed and started again: `node test/bench/restart.ts [rounds]`, on this
 * machine's kernel where that has nbd, else in the guest. One line a round: until the new process has renewed the
 * kernel's connection, until it is ready for everything else, and the longest a write or flush on the device took,
 * which adds the kernel's timer where a request was under way.
 */
import { open } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { Claim } from "../e2e/claim.ts";
import { Cluster } from "../e2e/cluster.ts";
import { machineHasNbd, runInGuest } from "../kernel/guest.ts";

const blockBytes = 4096;
const settleMs = 4000;

/** Writes and flushes one block after another until it is told to stop. */
class Load {
  longestMs = 0;
  operations = 0;
  #running = true;
  readonly #done: Promise<void>;

  constructor(path: string, seed: number) {
    this.#done = this.#run(path, new SeededRandom(seed));
  }

  async stop(): Promise<void> {
    this.#running = false;
    await this.#done;
  }

  async #run(path: string, random: SeededRandom): Promise<void> {
    const device = await open(path, "r+");
    try {
      while (this.#running) {
        const startMs = performance.now();
        await device.write(random.bytes(blockBytes), 0, blockBytes, random.below(4096) * blockBytes);
        await device.datasync();
        this.longestMs = Math.max(this.longestMs, performance.now() - startMs);
        this.operations += 1;
      }
    } finally {
      await device.close();
    }
  }
}

async function measure(rounds: number): Promise<void> {
  const cluster = await Cluster.start();
  try {
    const claim = new Claim(cluster, { name: "restarted", use: "block" });
    await claim.bringUp();
    const { server } = cluster.nodes[0];
    const load = new Load(claim.target, 1);
    const renewed: number[] = [];
    const stalls: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      await new Promise((resolve) => setTimeout(resolve, settleMs + 37 * round));
      load.longestMs = 0;
      const startMs = performance.now();
      await server.stop("SIGKILL");
      server.launch();
      const passed = async (message: string): Promise<number> => {
        await server.logged(message);
        return Math.round(performance.now() - startMs);
      };
      const [renewedMs, readyMs] = await Promise.all([
        passed("the kernel's connection is renewed"),
        passed("the server is ready"),
      ]);
      await new Promise((resolve) => setTimeout(resolve, settleMs));
      renewed.push(renewedMs);
      stalls.push(load.longestMs);
      process.stdout.write(`renewed ${renewedMs} ms, ready ${readyMs} ms, stall ${Math.round(load.longestMs)} ms\n`);
    }
    await load.stop();
    for (const [name, values] of Object.entries({ renewed, stall: stalls })) {
      const sorted = values.toSorted((a, b) => a - b).map(Math.round);
      process.stdout.write(`${name}: median ${sorted[sorted.length >> 1]} ms, longest ${sorted.at(-1)} ms\n`);
    }
    await claim.remove();
  } finally {
    await cluster.close();
  }
}

const rounds = Number(process.argv[2] ?? 10);
if (process.env.S3BLOCK_GUEST !== undefined || machineHasNbd()) {
  await measure(rounds);
} else {
  const words = [process.execPath, fileURLToPath(import.meta.url), String(rounds)];
  const write = (text: string): unknown => process.stdout.write(text);
  const { status } = await runInGuest({ command: words, timeoutMs: 60_000 + rounds * 30_000, onOutput: write });
  process.exitCode = status;
}
