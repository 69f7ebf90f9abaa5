/** What an action is, and what actions share. */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import type { SimNode } from "./node.ts";
import type { FaultName } from "./swarm.ts";
import type { World } from "./world.ts";

export interface Action {
  name: string;
  /** How often it is chosen, against the others. */
  weight: number;
  /** Somebody dies by it, stands still or loses the volume: where lives are short, there is more of it. */
  endsLives?: true;
  /** Only in worlds that have this fault. */
  fault?: FaultName;
  /** Does it; false where it made no sense at this moment. */
  run: (world: World, random: SeededRandom) => boolean;
}

export function anyNode(world: World, random: SeededRandom): SimNode {
  return world.nodes[random.below(world.nodes.length)];
}

/** Rather a node that uses the volume. */
export function usedNode(world: World, random: SeededRandom): SimNode {
  const used = [...world.cluster.sessions.keys()];
  return used.length > 0 && random.below(5) > 0 ? used[random.below(used.length)] : anyNode(world, random);
}

/** Counts a crash point, once it has come about. */
export function crashed(world: World): true {
  world.countCrash();
  return true;
}

/** From one to `most`, each order of magnitude as likely. */
export function logUniform(random: SeededRandom, most: number): number {
  return Math.exp(random.fraction() * Math.log(most));
}
