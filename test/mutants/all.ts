/** Every mutant, in the order in which they are run. */
import { journalMutants } from "./list/journal.ts";
import { mapMutants } from "./list/map.ts";
import { nbdMutants } from "./list/nbd.ts";
import { ownershipMutants } from "./list/ownership.ts";
import { readingMutants } from "./list/reading.ts";
import { writePathMutants } from "./list/write-path.ts";
import type { Mutant } from "./mutant.ts";

export const allMutants: readonly Mutant[] = [
  ...writePathMutants,
  ...journalMutants,
  ...ownershipMutants,
  ...mapMutants,
  ...readingMutants,
  ...nbdMutants,
];
