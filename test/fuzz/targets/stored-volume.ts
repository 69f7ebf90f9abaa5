/**
 * A whole volume with one of its objects changed behind a right checksum, as a broken or hostile writer would leave it:
 * it opens or not, and each block is served or not, but by typed errors alone, never by an assertion.
 * An input is the number of the key and the object's bytes.
 */
import { parseKey } from "../../../src/volume/keys.ts";
import { buildStoredVolume, readStoredVolume, TrialStore } from "../campaigns/stored-volume.ts";
import { mutated } from "../mutation.ts";
import type { FuzzTarget } from "../target.ts";
import { mendEnvelope } from "./stored-formats.ts";

async function forgedVolume(): Promise<FuzzTarget> {
  const stored = await buildStoredVolume(1);
  const keys = [...stored.objects.keys()];
  const seeds = keys.map((key, index) => Buffer.concat([Buffer.from([index]), stored.objects.get(key)!]));
  const mend = (input: Buffer): Buffer => {
    if (input.length > 1) mendEnvelope(input.subarray(1));
    return input;
  };
  return {
    name: "stored-volume-forged",
    // Mutating the many frames of a segment finds nothing that a changed head would not.
    seeds: seeds.filter((seed) => seed.length < 4096),
    mutate: (input, random, others) => {
      const body = mutated(input.subarray(1), random, others);
      const forged = Buffer.concat([input.subarray(0, 1), body]);
      return random.below(8) === 0 ? forged : mend(forged);
    },
    mend,
    memoryBytes: 128 * 1024 * 1024,
    async run(input) {
      const key = keys[(input[0] ?? 0) % keys.length];
      const store = new TrialStore(stored.objects);
      if (input.length > 1) store.replace(key, Buffer.from(input.subarray(1)));
      const { opened, refused } = await readStoredVolume(store, stored.blocks);
      return `${parseKey(key)?.kind}-${opened ? (refused > 0 ? "refusing" : "open") : "closed"}`;
    },
  };
}

export const volumeTargets = { "stored-volume-forged": forgedVolume } as const;
