/** Long runs of one question each, by name: `npm run fuzz -- --target NAME`. Each answers with its figures in words. */
import { damageCache } from "./campaigns/cache-parts.ts";
import { damageTails, TAIL_BYTES } from "./campaigns/journal-tails.ts";
import { manyFrames } from "./campaigns/nbd-in-process.ts";
import { manySocketFrames } from "./campaigns/nbd-sockets.ts";
import { damageObjects } from "./campaigns/stored-objects.ts";

type Campaign = (options: { seed: number; cases: number | undefined }) => Promise<string>;

const MEMORY_GROWTH_BYTES = 64 * 1024 * 1024;

function inMib(bytes: number): string {
  if (bytes >= MEMORY_GROWTH_BYTES) throw new Error(`memory grew by ${bytes} bytes`);
  return `${(bytes / 1024 / 1024).toFixed(1)} MiB`;
}

export const campaigns: Readonly<Record<string, Campaign>> = {
  "journal-tails": async ({ seed, cases = 100_000 }) => {
    const { cuts, flips, shortened } = await damageTails({ seed, cuts: Math.min(TAIL_BYTES, cases), flips: cases });
    return `${cuts} places cut in two ways, ${flips} bits flipped: each time exactly the records before (${shortened} times fewer)`;
  },
  "stored-objects": async ({ seed, cases = 100_000 }) => {
    const { trials, refused, unharmed, byKind } = await damageObjects({ seed, trials: cases });
    const kinds = [...byKind]
      .map(([kind, count]) => `${kind} ${count}`)
      .toSorted((left, right) => (left < right ? -1 : 1));
    return `${trials} objects damaged (${kinds.join(", ")}): all found; volumes refused or refusing ${refused}, unharmed ${unharmed}, wrong blocks 0`;
  },
  "nbd-in-process": async ({ seed, cases = 100_000_000 }) => {
    const { frames, connections, growthBytes } = await manyFrames({ seed, frames: cases });
    return `${frames} requests on ${connections} connections, every answer right, memory grew by ${inMib(growthBytes)}`;
  },
  "nbd-sockets": async ({ seed, cases = 10_000_000 }) => {
    const { frames, connections, readBack, growthBytes } = await manySocketFrames({ seed, frames: cases });
    return `${frames} requests on ${connections} connections, every answer right, ${readBack} writes of another client read back, the server's memory grew by ${inMib(growthBytes)}`;
  },
  "cache-parts": async ({ seed, cases = 100_000 }) => {
    const { trials, damagedParts } = await damageCache({ seed, trials: cases });
    return `${trials} trials, ${damagedParts} parts rotten, exchanged or rolled back: all found, 0 served`;
  },
};
