/** Long runs of one question each, by name: `npm run fuzz -- --target NAME`. Each answers with its figures in words. */
import { damageCache } from "./campaigns/cache-parts.ts";
import { damageTails, TAIL_BYTES } from "./campaigns/journal-tails.ts";
import { damageObjects } from "./campaigns/stored-objects.ts";

type Campaign = (options: { seed: number; cases: number | undefined }) => Promise<string>;

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
  "cache-parts": async ({ seed, cases = 100_000 }) => {
    const { trials, damagedParts } = await damageCache({ seed, trials: cases });
    return `${trials} trials, ${damagedParts} parts rotten, exchanged or rolled back: all found, 0 served`;
  },
};
