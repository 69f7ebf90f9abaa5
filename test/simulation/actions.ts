/**
 * Everything that can happen in a world, one small object each: its weight, the fault it belongs to, and what it does.
 * A new part of the engine joins by adding its actions here and its checks where it is observed.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { type Action, anyNode, crashed, logUniform, usedNode } from "./action.ts";
import { damageActions } from "./damage-actions.ts";
import type { SimNode } from "./node.ts";
import type { World } from "./world.ts";

const clusterActions: readonly Action[] = [
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
    endsLives: true,
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
    endsLives: true,
    fault: "kill",
    run: (world, random) => {
      usedNode(world, random).killInWrite();
      return true;
    },
  },
  {
    name: "power loss",
    weight: 6,
    endsLives: true,
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
    endsLives: true,
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
    endsLives: true,
    fault: "freeze",
    run: (world, random) => {
      const node = usedNode(world, random);
      if (!node.freezeProcess()) return false;
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
      if (node === cluster.target || cluster.recreating) return false;
      if (cluster.target !== undefined) cluster.evicted.add(cluster.target);
      cluster.target = node;
      cluster.forced = false;
      return true;
    },
  },
  {
    name: "force move",
    weight: 4,
    endsLives: true,
    fault: "force-move",
    run: (world, random) => {
      const node = anyNode(world, random);
      if (node === world.cluster.target) return false;
      takeTo(world, node);
      return crashed(world);
    },
  },
  {
    name: "race",
    weight: 2,
    endsLives: true,
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
      world.clock.after(logUniform(random, 600_000), () => (world.service.out = false));
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
      world.clock.after(logUniform(random, 600_000), () => world.service.partitioned.delete(name));
      return true;
    },
  },
  {
    name: "burst",
    weight: 6,
    run: (world, random) => {
      const sessions = [...world.cluster.sessions.values()];
      if (sessions.length === 0) return false;
      const session = sessions[random.below(sessions.length)];
      for (let count = 40; count > 0; count -= 1) {
        session.step(40);
        if (random.below(3) === 0) session.flush();
      }
      return true;
    },
  },
  {
    name: "flood while the store is away",
    weight: 2,
    fault: "outage",
    run: (world, random) => {
      const session = [...world.cluster.sessions.values()][0];
      if (session === undefined || world.service.out) return false;
      world.service.out = true;
      world.clock.after(1000 + random.below(30_000), () => (world.service.out = false));
      for (let turn = 0; turn < 10; turn += 1) {
        world.clock.after(turn * 20, () => {
          for (let count = 12; count > 0; count -= 1) session.step(60);
        });
      }
      if (random.below(3) === 0) world.clock.after(220, () => session.device.breakConnection());
      return true;
    },
  },
  {
    name: "crash, then power loss",
    weight: 2,
    endsLives: true,
    fault: "power-loss",
    run: (world, random) => {
      const node = usedNode(world, random);
      if (!node.up || node.server === undefined) return false;
      world.coverage.add("power lost after a crash");
      node.killProcess("killed before a loss of power");
      world.clock.after(logUniform(random, 3000), () => node.losePower());
      world.countCrash();
      return crashed(world);
    },
  },
  {
    name: "ambush",
    weight: 5,
    endsLives: true,
    fault: "kill",
    run: (world, random) => {
      // Somebody takes the volume, or has it, and dies or freezes at one of its next requests to the store.
      const node = usedNode(world, random);
      const { server } = node;
      if (server === undefined || server.process.dead) return false;
      const freezes = world.swarm.enabled.has("freeze") && random.below(2) === 0;
      const spring = (): void => {
        if (node.server !== server || server.process.dead) return;
        world.lookForRisk();
        world.countCrash();
        world.coverage.add(freezes ? "frozen at a request" : "killed at a request");
        if (freezes) node.freezeProcess();
        else node.killProcess("at a request");
        if (random.below(2) === 0) takeAway(world, node, random);
      };
      world.service.ambushes.set(server.process.name, { left: 1 + random.below(25), spring });
      if (random.below(2) === 0) takeTo(world, node);
      return true;
    },
  },
  {
    name: "revoke",
    weight: 2,
    fault: "revoked",
    run: (world, random) => {
      const site = random.below(4) === 0 ? "controller" : usedNode(world, random).name;
      if (world.service.refusing.has(site)) return false;
      world.service.refusing.set(site, random.below(2) === 0 ? "invalid" : "not-found");
      world.clock.after(logUniform(random, 300_000), () => world.service.refusing.delete(site));
      return true;
    },
  },
  {
    name: "re-create",
    weight: 1,
    fault: "re-create",
    run: (world, random) => {
      if (world.cluster.recreating) return false;
      world.background(world.cluster.recreate(anyNode(world, random)));
      return crashed(world);
    },
  },
  {
    name: "read-only from now on, or not",
    weight: 1,
    fault: "read-only",
    run: (world) => {
      world.cluster.readOnly = !world.cluster.readOnly;
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
      world.pauseMs = logUniform(random, 30_000);
      return true;
    },
  },
];

export const actions: readonly Action[] = [...clusterActions, ...damageActions];

function takeAway(world: World, from: SimNode, random: SeededRandom): void {
  const others = world.nodes.filter((node) => node !== from);
  takeTo(world, others[random.below(others.length)]);
}

function takeTo(world: World, node: SimNode): void {
  if (world.cluster.recreating) return;
  world.cluster.target = node;
  world.cluster.forced = true;
}
