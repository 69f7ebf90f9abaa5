/**
 * The fault mix of a world, drawn from its seed: each one switches a random subset of all faults on, with rates of its
 * own, so that combinations come up which a fixed mix would never show.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";

/** Every fault that a world can have, by the name that --without takes. */
export const faultNames = [
  "slow-store",
  "refused",
  "conflict",
  "reset-before",
  "reset-after",
  "late",
  "timeout",
  "short-body",
  "rot",
  "short-pages",
  "outage",
  "partition",
  "kill",
  "power-loss",
  "node-loss",
  "freeze",
  "hand-over",
  "move",
  "force-move",
  "race",
  "reconnect",
  "slow-disk",
  "disk-error",
  "disk-full",
  "revoked",
  "re-create",
  "read-only",
  "journal-rot",
  "cache-rot",
  "store-rot",
  "skew",
  "control",
] as const;

export type FaultName = (typeof faultNames)[number];

export interface StoreFaults {
  latencyMs: number;
  tail: number;
  refused: number;
  conflict: number;
  resetBefore: number;
  resetAfter: number;
  late: number;
  timeout: number;
  shortBody: number;
  rot: number;
  shortPages: boolean;
}

export interface Swarm {
  enabled: ReadonlySet<FaultName>;
  store: StoreFaults;
  nodes: number;
  durability: "s3" | "local";
  /** 128 blocks, times this. */
  scale: number;
  journalFileBytes: number;
  journalSizeBytes: number;
  mapBudgetBytes: number;
  cacheBytes: number;
  uploadIntervalMs: number;
  /** Requests that a client keeps in flight at most. */
  depth: number;
  /** Mean time between two actions. */
  paceMs: number;
}

/** Draws the mix; `without` are left out whatever is drawn, and change nothing else. */
export function drawSwarm(random: SeededRandom, without: ReadonlySet<string>): Swarm {
  const enabled = new Set<FaultName>();
  const density = 0.15 + 0.7 * random.fraction();
  for (const name of faultNames) {
    // What loses data or bodies for good is rare: it weakens what the oracle may ask for.
    const rare = name === "rot" || name === "short-body" || name === "journal-rot" || name === "store-rot";
    const often = name === "kill" || name === "power-loss" || name === "force-move";
    const chance = rare ? 0.12 : often ? 0.85 : density;
    if (random.fraction() < chance && !without.has(name)) enabled.add(name);
  }
  const rate = (name: FaultName, most: number): number => {
    const drawn = random.fraction() * most;
    return enabled.has(name) ? drawn : 0;
  };
  const store: StoreFaults = {
    latencyMs: 1 + random.fraction() * 30,
    tail: rate("slow-store", 0.05),
    refused: rate("refused", 0.2),
    conflict: rate("conflict", 0.1),
    resetBefore: rate("reset-before", 0.1),
    resetAfter: rate("reset-after", 0.15),
    late: rate("late", 0.1),
    timeout: rate("timeout", 0.02),
    shortBody: rate("short-body", 0.02),
    rot: rate("rot", 0.02),
    shortPages: enabled.has("short-pages"),
  };
  const journalFileBytes = random.below(2) === 0 ? 64 * 1024 : 128 * 1024;
  return {
    enabled,
    store,
    nodes: 2 + random.below(3),
    durability: random.below(5) < 3 ? "s3" : "local",
    scale: 1 + random.below(2),
    journalFileBytes,
    journalSizeBytes: journalFileBytes * (2 + random.below(7)),
    mapBudgetBytes: [1024, 2048, 16 * 1024, 1024 * 1024][random.below(4)],
    cacheBytes: random.below(4) === 0 ? 0 : 4 * 1024 * 1024,
    uploadIntervalMs: [50, 500, 5000][random.below(3)],
    depth: [1, 4, 16][random.below(3)],
    paceMs: [2, 10, 40][random.below(3)],
  };
}
