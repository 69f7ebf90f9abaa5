/**
 * Everything that can happen in a world, one small object each: its weight, the fault it belongs to, and what it does.
 * A new part of the engine joins by adding its actions here and its checks where it is observed.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import type { SimNode } from "./node.ts";
import type { FaultName } from "./swarm.ts";
import type { World } from "./world.ts";

export interface Action {
  name: string;
  /** How often it is chosen, against the others. */
  weight: number;
  /** Only in worlds that have this fault. */
  fault?: FaultName;
  /** Does it; false where it made no sense at this moment. */
  run: (world: World, random: SeededRandom) => boolean;
}

function anyNode(world: World, random: SeededRandom): SimNode {
  return world.nodes[random.below(world.nodes.length)];
}

/** Rather a node that uses the volume. */
function usedNode(world: World, random: SeededRandom): SimNode {
  const used = [...world.cluster.sessions.keys()];
  return used.length > 0 && random.below(5) > 0 ? used[random.below(used.length)] : anyNode(world, random);
}

function crashed(world: World): true {
  world.crashes += 1;
  return true;
}

export const actions: readonly Action[] = [
  {
    name: "requests",
    weight: 100,
    run: (world, random) => {
      const sessions = [...world.cluster.sessions.values()];
      if (sessions.length === 0) return false;
      const session = sessions[random.below(sessions.length)];
      for (let count = 1 + random.below(world.swarm.depth); count > 0; count -= 1) session.step();
      return true;
    },
  },
  {
    name: "kill",
    weight: 9,
    fault: "kill",
    run: (world, random) => {
      const node = usedNode(world, random);
      if (node.server === undefined || node.server.process.dead) return false;
      world.coverage.add(node.server.registry === undefined ? "killed while it started" : "process killed");
      node.killProcess("killed");
      return crashed(world);
    },
  },
  {
    name: "kill in a write",
    weight: 3,
    fault: "kill",
    run: (world, random) => {
      usedNode(world, random).killInWrite();
      return true;
    },
  },
  {
    name: "power loss",
    weight: 6,
    fault: "power-loss",
    run: (world, random) => {
      const node = usedNode(world, random);
      if (!node.up) return false;
      world.coverage.add("power lost");
      node.losePower();
      return crashed(world);
    },
  },
  {
    name: "node loss",
    weight: 2,
    fault: "node-loss",
    run: (world, random) => {
      const node = usedNode(world, random);
      if (!node.up) return false;
      world.coverage.add("node lost with its disk");
      node.loseDisk();
      return crashed(world);
    },
  },
  {
    name: "freeze",
    weight: 4,
    fault: "freeze",
    run: (world, random) => {
      const node = usedNode(world, random);
      const process = node.server?.process;
      if (process === undefined || process.dead || process.frozen) return false;
      world.coverage.add("process frozen");
      world.trace.add(`${process.name} freezes`);
      process.freeze();
      world.clock.after(Math.exp(random.fraction() * Math.log(300_000)), () => {
        if (process.dead || !process.frozen) return;
        world.coverage.add("process thawed");
        world.trace.add(`${process.name} thaws`);
        process.thaw();
      });
      if (random.below(2) === 0) takeAway(world, node, random);
      return crashed(world);
    },
  },
  {
    name: "hand-over",
    weight: 3,
    fault: "hand-over",
    run: (world, random) => {
      const node = usedNode(world, random);
      const server = node.server;
      if (server?.registry === undefined || server.process.frozen) return false;
      world.trace.add(`${server.process.name} hands over`);
      world.coverage.add("hand-over begun");
      world.background(
        server.handOver().then(() => {
          if (node.server !== server || server.process.dead) return;
          world.coverage.add("hand-over done");
          node.killProcess("handed over");
        }),
      );
      world.clock.after(30_000, () => {
        if (node.server === server) node.killProcess("hand-over takes too long");
      });
      return true;
    },
  },
  {
    name: "move",
    weight: 2,
    fault: "move",
    run: (world, random) => {
      const { cluster } = world;
      const node = anyNode(world, random);
      if (node === cluster.target) return false;
      if (cluster.target !== undefined) cluster.evicted.add(cluster.target);
      cluster.target = node;
      cluster.forced = false;
      return true;
    },
  },
  {
    name: "force move",
    weight: 4,
    fault: "force-move",
    run: (world, random) => {
      const node = anyNode(world, random);
      if (node === world.cluster.target) return false;
      world.cluster.target = node;
      world.cluster.forced = true;
      return crashed(world);
    },
  },
  {
    name: "race",
    weight: 2,
    fault: "race",
    run: (world, random) => {
      const node = anyNode(world, random);
      const { cluster } = world;
      if (!node.up || cluster.working.has(node) || cluster.sessions.has(node)) return false;
      world.coverage.add("attached without a publication");
      cluster.working.add(node);
      world.background(cluster.attach(node, 0).finally(() => cluster.working.delete(node)));
      return crashed(world);
    },
  },
  {
    name: "give up",
    weight: 2,
    run: (world, random) => {
      const others = [...world.cluster.sessions.keys()].filter((node) => node !== world.cluster.target);
      if (others.length === 0) return false;
      world.cluster.evicted.add(others[random.below(others.length)]);
      return true;
    },
  },
  {
    name: "reconnect",
    weight: 3,
    fault: "reconnect",
    run: (world, random) => {
      const sessions = [...world.cluster.sessions.values()].filter((session) => session.device.connected);
      if (sessions.length === 0) return false;
      world.coverage.add("kernel connection broken");
      sessions[random.below(sessions.length)].device.breakConnection();
      return true;
    },
  },
  {
    name: "outage",
    weight: 2,
    fault: "outage",
    run: (world, random) => {
      if (world.service.out) return false;
      world.coverage.add("outage of the store");
      world.service.out = true;
      world.clock.after(Math.exp(random.fraction() * Math.log(600_000)), () => (world.service.out = false));
      return true;
    },
  },
  {
    name: "partition",
    weight: 2,
    fault: "partition",
    run: (world, random) => {
      const { name } = usedNode(world, random);
      if (world.service.partitioned.has(name)) return false;
      world.coverage.add("node partitioned from the store");
      world.service.partitioned.add(name);
      world.clock.after(Math.exp(random.fraction() * Math.log(600_000)), () => world.service.partitioned.delete(name));
      return true;
    },
  },
  {
    name: "controller dies",
    weight: 2,
    fault: "control",
    run: (world) => {
      world.coverage.add("controller killed");
      world.cluster.restartController();
      return crashed(world);
    },
  },
  {
    name: "time passes",
    weight: 6,
    run: (world, random) => {
      world.pauseMs = Math.exp(random.fraction() * Math.log(30_000));
      return true;
    },
  },
];

function takeAway(world: World, from: SimNode, random: SeededRandom): void {
  const others = world.nodes.filter((node) => node !== from);
  world.cluster.target = others[random.below(others.length)];
  world.cluster.forced = true;
}
