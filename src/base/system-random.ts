/** The machine's cryptographic randomness. */
import { randomBytes, randomInt } from "node:crypto";
import type { Random } from "./random.ts";

export const systemRandom: Random = {
  bytes: (length) => randomBytes(length),
  fraction: () => randomInt(2 ** 47) / 2 ** 47,
};
