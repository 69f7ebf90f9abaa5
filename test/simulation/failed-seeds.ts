/** Seeds that showed a bug of the product, and what it was: `npm test` runs them all. */
export const failedSeeds: readonly { seed: number; why: string }[] = [
  { seed: 4, why: "two shards of the map loaded at one moment: the changed one had been dropped, its write was lost" },
  { seed: 14, why: "the same, after a take-over" },
  { seed: 198, why: "a volume that was fenced while it was detached stayed open: no attach there before a restart" },
  { seed: 261, why: "records torn off by a loss of power came back with the next one, over what S3 held by then" },
  {
    seed: 1_002_930,
    why: "a disk that had refused a journal file was not asked again: writes and detach waited for ever",
  },
  { seed: 1_003_227, why: "the same" },
  { seed: 40, why: "a flush was answered for writes that went with a rotten journal, under a device that waited" },
  ...[300_354, 1_002_191, 1_002_351, 1_007_159, 1_008_312, 1_008_708, 1_010_162, 1_011_691].map((seed) => ({
    seed,
    why: "the same",
  })),
  {
    seed: 6_005_812,
    why: "the name of a journal's directory, whose sync had failed, was never synced again: a loss of power took flushes",
  },
  {
    seed: 7_010_671,
    why: "a listing that came after a whole deletion, beside a record read before it: a deleted volume was opened",
  },
  { seed: 7_014_325, why: "the same" },
];
