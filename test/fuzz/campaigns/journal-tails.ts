/**
 * A journal whose tail is cut short at every byte of its last 64 KiB (the rest reads as zeroes, or is not there), and
 * one in which single bits of those 64 KiB have turned. Recovery must give exactly the records before the damage.
 */
import assert from "node:assert/strict";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { diskOf, recoverJournal, soundJournal, summary } from "../targets/journal.ts";

export const TAIL_BYTES = 64 * 1024;
const FILE_BYTES = 128 * 1024;

export interface TailReport {
  cuts: number;
  flips: number;
  /** Trials after which fewer records came back than had been written. */
  shortened: number;
}

/** Tries `cuts` lengths of the tail, evenly spread (65,536 are all of them), each in both ways, and `flips` bits. */
export async function damageTails(options: { seed: number; cuts: number; flips: number }): Promise<TailReport> {
  const { image, records, starts, end } = await soundJournal(1, FILE_BYTES);
  const expected = records.map(summary);
  const ends = [...starts.slice(1), end];
  const tailAt = end - TAIL_BYTES;
  const report: TailReport = { cuts: 0, flips: 0, shortened: 0 };

  const mustKeep = async (damaged: Buffer, firstChanged: number, where: string): Promise<void> => {
    const { journal, records: found } = await recoverJournal(await diskOf(damaged, FILE_BYTES));
    await journal.close();
    const kept = ends.filter((recordEnd) => recordEnd <= firstChanged).length;
    assert.deepEqual(found.map(summary), expected.slice(0, kept), where);
    if (kept < expected.length) report.shortened += 1;
  };

  for (let trial = 0; trial < options.cuts; trial += 1) {
    const at = tailAt + Math.floor((trial * TAIL_BYTES) / options.cuts);
    const zeroed = Buffer.from(image).fill(0, at);
    // Zeroes that were zeroes before are no change: the record they end is whole.
    await mustKeep(zeroed, firstDifference(zeroed, image, at), `zeroes from byte ${at}`);
    await mustKeep(Buffer.from(image.subarray(0, at)), at, `cut at byte ${at}`);
    report.cuts += 1;
  }
  const random = new SeededRandom(options.seed);
  for (let trial = 0; trial < options.flips; trial += 1) {
    const at = tailAt + random.below(TAIL_BYTES);
    const bit = random.below(8);
    const turned = Buffer.from(image);
    turned[at] ^= 1 << bit;
    await mustKeep(turned, at, `seed=${options.seed} bit ${bit} of byte ${at}`);
    report.flips += 1;
  }
  return report;
}

function firstDifference(one: Buffer, other: Buffer, from: number): number {
  let at = from;
  while (at < one.length && one[at] === other[at]) at += 1;
  return at;
}
