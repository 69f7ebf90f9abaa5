/** What goes wrong with disks and with what lies on them, or in the store. */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { endOfJournal } from "../suites/journal-end.ts";
import { type Action, anyNode, crashed, logUniform, usedNode } from "./action.ts";
import type { SimNode } from "./node.ts";
import type { Session } from "./session.ts";
import type { World } from "./world.ts";

const SLOT_BYTES = 65_536;

export const damageActions: readonly Action[] = [
  {
    name: "slow disk",
    weight: 1,
    fault: "slow-disk",
    run: (world, random) => {
      const { faults } = anyNode(world, random);
      faults.delayMs = logUniform(random, 500);
      world.coverage.add("slow disk");
      world.clock.after(logUniform(random, 10_000), () => (faults.delayMs = 0.5));
      return true;
    },
  },
  {
    name: "disk errors",
    weight: 2,
    fault: "disk-error",
    run: (world, random) => {
      const { faults } = usedNode(world, random);
      const kind = (["read", "write", "sync"] as const)[random.below(3)];
      faults[kind] = random.below(3) === 0 ? 1 : 0.2 * random.fraction();
      world.clock.after(logUniform(random, 5000), () => (faults[kind] = 0));
      return true;
    },
  },
  {
    name: "failed sync, then power loss",
    weight: 3,
    endsLives: true,
    fault: "disk-error",
    run: (world, random) => {
      const [session] = world.cluster.sessions.values();
      if (session === undefined || !session.alive) return false;
      const { node } = session;
      const useIt = (): void => {
        for (let count = 6; count > 0; count -= 1) session.step(20);
        session.flush();
      };
      node.faults.sync = 1;
      useIt();
      world.clock.after(6, () => (node.faults.sync = 0));
      if (random.below(2) === 0) world.clock.after(8, useIt);
      world.clock.after(10 + logUniform(random, 1000), () => {
        if (node.up) world.coverage.add("power lost after a failed sync");
        node.losePower();
      });
      return crashed(world);
    },
  },
  {
    name: "full disk",
    weight: 2,
    fault: "disk-full",
    run: (world, random) => {
      const node = usedNode(world, random);
      node.fillDisk(random.below(3) * SLOT_BYTES);
      world.coverage.add("disk full");
      world.clock.after(logUniform(random, 60_000), () => node.emptyDisk());
      return true;
    },
  },
  {
    name: "journal rot",
    weight: 1,
    fault: "journal-rot",
    run: (world, random) => {
      const node = usedNode(world, random);
      const session = world.cluster.sessions.get(node);
      if (session?.alive === true && random.below(4) > 0) {
        rotBetweenLives(world, session, random);
        return true;
      }
      if (!rot(node, random, isJournal)) return false;
      journalRotted(world, node);
      return true;
    },
  },
  {
    name: "cache rot",
    weight: 3,
    fault: "cache-rot",
    run: (world, random) => {
      const node = usedNode(world, random);
      const kind = random.below(4);
      const name = kind === 0 ? "cache/cache-index" : "cache/cache-blocks";
      if (node.state.sizeOf(name) === 0) return false;
      if (kind === 1) swapSlots(node, random);
      else if (kind === 2) rollBack(world, node, random);
      else for (let count = 1 + random.below(50); count > 0; count -= 1) rot(node, random, (path) => path === name);
      world.coverage.add(`cache rotted: ${["index", "slots swapped", "rolled back", "bits"][kind]}`);
      return true;
    },
  },
  {
    name: "store rot",
    weight: 1,
    fault: "store-rot",
    run: (world, random) => {
      const { keys, rotten, parts } = world.service;
      if (keys.length === 0) return false;
      const key = keys[keys.length - 1 - random.below(Math.min(keys.length, 40))];
      rotten.set(key, [random.below(8 * (random.below(2) === 0 ? 200 : 20_000))]);
      parts.trace.add(`rot in ${key}`);
      world.coverage.add("object rotted");
      // Somebody restores the object, in time.
      world.clock.after(logUniform(random, 60_000), () => rotten.delete(key));
      return true;
    },
  },
];

function isJournal(path: string): boolean {
  return path.startsWith("journal/");
}

function journalRotted(world: World, node: SimNode): void {
  node.raiseRisk("all");
  node.diskFailures += 1;
  world.coverage.add("journal rotted");
}

/** The server dies under writes, and a bit near the end of its journal rots before another one reads it; a few times. */
function rotBetweenLives(world: World, session: Session, random: SeededRandom, times = 4): void {
  const { node } = session;
  if (times === 0 || !session.alive || session.stopped) return;
  for (let count = 20; count > 0; count -= 1) session.step(40);
  world.clock.after(logUniform(random, 20), () => {
    const { server } = node;
    const last = endOfJournal(node.state.paths().filter(isJournal), (path) => node.state.contentOf(path));
    if (server?.registry === undefined || server.process.dead || last === undefined) return;
    world.lookForRisk();
    world.countCrash();
    node.killProcess("and its journal rots");
    flipBit(node, last.name, Math.max(0, last.end - 1 - random.below(8000)), random);
    journalRotted(world, node);
    world.coverage.add("journal rotted between two lives");
    world.clock.after(4000, () => rotBetweenLives(world, session, random, times - 1));
  });
}

function flipBit(node: SimNode, path: string, at: number, random: SeededRandom): void {
  node.state.damage(path, at, Buffer.of(node.state.contentOf(path, at, 1)[0] ^ (1 << random.below(8))));
}

/** Flips one bit of a file; false where there is no such file. */
function rot(node: SimNode, random: SeededRandom, wanted: (path: string) => boolean): boolean {
  const paths = node.state.paths().filter(wanted);
  if (paths.length === 0) return false;
  const path = paths[random.below(paths.length)];
  const sizeBytes = node.state.sizeOf(path);
  if (sizeBytes === 0) return false;
  const at = random.below(random.below(2) === 0 ? Math.min(sizeBytes, 20_000) : sizeBytes);
  flipBit(node, path, at, random);
  return true;
}

function swapSlots(node: SimNode, random: SeededRandom): void {
  const path = "cache/cache-blocks";
  const slots = Math.ceil(node.state.sizeOf(path) / SLOT_BYTES);
  const [one, other] = [random.below(slots) * SLOT_BYTES, random.below(slots) * SLOT_BYTES];
  const [first, second] = [one, other].map((at) => node.state.contentOf(path, at, SLOT_BYTES));
  node.state.damage(path, one, second);
  node.state.damage(path, other, first);
}

/** The cache file becomes what it was some time ago; the index stays. */
function rollBack(world: World, node: SimNode, random: SeededRandom): void {
  const path = "cache/cache-blocks";
  const old = node.state.contentOf(path);
  world.clock.after(logUniform(random, 5000), () => node.state.damage(path, 0, old));
}
