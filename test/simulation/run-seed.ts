/**
 * Runs one world from its seed to its end: a number of random actions, then all faults end, everything must drain, and
 * a node that never saw the volume must find in S3 what was acknowledged.
 */
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { getMeta } from "../../src/volume/names.ts";
import type { Action } from "./action.ts";
import { actions } from "./actions.ts";
import { volumeId } from "./content.ts";
import type { SimNode } from "./node.ts";
import { OracleError } from "./oracle.ts";
import { World } from "./world.ts";

export interface RunOptions {
  /** Actions; default 300. */
  steps?: number;
  /** Faults that stay off, by name. */
  without?: readonly string[];
  /** Numbers of actions that are left out. */
  skip?: ReadonlySet<number>;
  /** Whatever ends a life comes up four times as often. */
  shortLives?: boolean;
  /** A page of four on the nodes' disks has left memory, and is waited for. */
  coldDisks?: boolean;
}

export interface Result {
  seed: number;
  ok: boolean;
  /** Why it failed. */
  error: string | undefined;
  /** The last lines of the trace, where it failed. */
  trace: string[];
  traceHash: number;
  traceLines: number;
  crashes: number;
  crashesAtRisk: number;
  steps: number;
  events: number;
  coverage: [string, number][];
  /** It had to be ended from outside: nothing is known of it but its seed. */
  hangs: boolean;
}

const DEFAULT_STEPS = 300;
const SHORT_LIVES_FACTOR = 4;
/** Virtual time in which everything must have drained once no fault is left. */
const DRAIN_MS = 900_000;
/** No request arrives later than so long after it was sent. */
const LATEST_MS = 660_000;

export async function runSeed(seed: number, options: RunOptions = {}): Promise<Result> {
  const world = new World(seed, new Set(options.without ?? []));
  world.coldDisks = options.coldDisks === true;
  const onUncaught = (error: unknown): void => world.fail(error);
  process.on("unhandledRejection", onUncaught);
  process.on("uncaughtException", onUncaught);
  let failure: unknown;
  try {
    await Promise.race([live(world, options), world.failed]);
  } catch (error) {
    failure = error ?? new Error("failed without an error");
  } finally {
    world.clock.stop();
    for (const node of world.nodes) node.server?.process.kill();
    world.cluster.controller.kill();
    // What was under way when the world stopped may still fail, and is nobody's business.
    await world.clock.settle();
    process.off("unhandledRejection", onUncaught);
    process.off("uncaughtException", onUncaught);
  }
  return {
    seed,
    ok: failure === undefined,
    error: failure === undefined ? undefined : explain(failure),
    trace: failure === undefined ? [] : world.trace.tail(),
    traceHash: world.trace.hash,
    traceLines: world.trace.lines,
    crashes: world.crashes,
    crashesAtRisk: world.crashesAtRisk,
    steps: options.steps ?? DEFAULT_STEPS,
    events: world.events,
    coverage: [...world.coverage.counts],
    hangs: false,
  };
}

/** Of a world of which nothing is known but that it failed. */
export function failedResult(seed: number, options: RunOptions, error: string): Result {
  const counts = { traceHash: 0, traceLines: 0, crashes: 0, crashesAtRisk: 0, events: 0 };
  const steps = options.steps ?? DEFAULT_STEPS;
  return { seed, ok: false, error, trace: [], ...counts, steps, coverage: [], hangs: false };
}

async function live(world: World, options: RunOptions): Promise<void> {
  const { cluster, clock, trace } = world;
  for (const node of world.nodes) node.boot();
  await cluster.create();
  cluster.target = world.nodes[0];
  const enabled = actions.filter(({ fault }) => fault === undefined || world.swarm.enabled.has(fault));
  const weightOf = ({ weight, endsLives }: Action): number =>
    options.shortLives === true && endsLives === true ? weight * SHORT_LIVES_FACTOR : weight;
  const total = enabled.reduce((sum, action) => sum + weightOf(action), 0);
  const steps = options.steps ?? DEFAULT_STEPS;
  for (let step = 0; step < steps; step += 1) {
    // A stream per step: leaving one out changes nothing in what the others draw.
    const random = world.stream(10_000 + step);
    if (random.below(8) > 0) await settle(world);
    cluster.reconcile();
    let left = random.fraction() * total;
    const action = enabled.find((candidate) => (left -= weightOf(candidate)) < 0) ?? enabled[0];
    world.lookForRisk();
    world.pauseMs = -Math.log(1 - random.fraction()) * world.swarm.paceMs;
    if (options.skip?.has(step) !== true && action.run(world, random)) {
      world.coverage.add(`action: ${action.name}`);
      if (action.name !== "requests") trace.add(`action ${step}: ${action.name}`);
    }
    await clock.sleep(world.pauseMs);
  }
  await end(world, new SeededRandom(world.seed));
}

/** Mostly, the next thing happens when somebody uses the volume again; else in the midst of recovering from the last one. */
async function settle(world: World): Promise<void> {
  const { clock, cluster } = world;
  for (let turn = 0; turn < 60; turn += 1) {
    for (const session of cluster.sessions.values()) if (session.alive && session.device.connected) return;
    cluster.reconcile();
    await clock.sleep(50);
  }
}

/** All faults end: everything must drain, be closed well, be found by a node that never had it, and can be deleted. */
async function end(world: World, random: SeededRandom): Promise<void> {
  const { cluster, clock, service, trace } = world;
  trace.add("all faults end");
  service.out = false;
  service.partitioned.clear();
  service.refusing.clear();
  service.ambushes.clear();
  service.rotten.clear();
  service.faultsOn = false;
  for (const node of world.nodes) node.heal();
  const bound = deadline(world);
  await until(world, () => !cluster.recreating, "the volume is not deleted and made again");
  const rest = world.nodes[random.below(world.nodes.length)];
  cluster.readOnly = false;
  cluster.target = rest;
  cluster.forced = random.below(2) === 0;
  const attached = (): boolean => cluster.sessions.get(rest)?.alive === true && !cluster.sessions.get(rest)!.readOnly;
  await until(world, attached, "the volume is not attached at the end");
  for (let count = 0; count < 20; count += 1) {
    for (const session of cluster.sessions.values()) session.step();
    await clock.sleep(random.fraction() * 20);
  }
  await until(world, () => attached() && cluster.sessions.get(rest)!.inFlight === 0, "requests are not answered");
  await drained(world, rest);
  await releaseAll(world);
  const fresh = world.addNode("node-z");
  world.nodes.push(fresh);
  fresh.boot();
  cluster.target = fresh;
  cluster.forced = true;
  await until(world, () => cluster.sessions.get(fresh)?.alive === true, "a fresh node cannot attach the volume");
  await releaseAll(world);
  // What is late may still be on its way.
  await clock.sleep(LATEST_MS);
  const tombstones = world.coverage.get("name freed by a tombstone");
  await cluster.delete();
  if (world.coverage.get("name freed by a tombstone") > tombstones)
    throw new OracleError("a deletion whose requests were all answered has left a tombstone");
  if ((await getMeta(service.truth, volumeId)) !== undefined) throw new OracleError("the name is not free");
  const left = await service.truth.list("", { limit: 1000 });
  const uids = new Set(left.objects.flatMap(({ key }) => /[0-9a-f]{32}/.exec(key)?.[0] ?? []));
  for (const uid of uids) {
    // Not even named: a binding that came too late to count.
    if (!world.named.has(uid)) continue;
    if (!world.oracleOf(uid).deleted || uid === world.lastUid) throw new OracleError(`objects of ${uid} are left`);
    world.coverage.add("objects of a deleted volume that came late");
  }
  world.coverage.add("ended well");
  bound.cancel();
}

/** With no fault left, everything acknowledged reaches S3 by itself. */
async function drained(world: World, node: SimNode): Promise<void> {
  const { cluster, clock, swarm } = world;
  let endMs = Infinity;
  for (;;) {
    const status = await cluster
      .call(node, (registry) => registry.getAttachment(volumeId))
      .catch((error: unknown) => void world.expectControlError(node, error));
    if (status?.state === "attached" && status.dirtyBytes === 0) return;
    // A former owner only learns by its next upload that it is none any more: then the volume is attached anew.
    if (status?.state === "attached") endMs = Math.min(endMs, clock.monotonicMs() + swarm.uploadIntervalMs + 60_000);
    else {
      endMs = Infinity;
      cluster.sessions.get(node)?.flush();
    }
    if (clock.monotonicMs() > endMs) throw new OracleError(`the volume does not drain: ${status?.dirtyBytes} bytes`);
    cluster.reconcile();
    await clock.sleep(100);
  }
}

async function releaseAll(world: World): Promise<void> {
  const { cluster } = world;
  cluster.target = undefined;
  for (const node of world.nodes) cluster.evicted.add(node);
  await until(world, () => cluster.sessions.size === 0 && cluster.working.size === 0, "not everything was detached");
  await cluster.controlUntilDone((catalog) => catalog.unpublish(volumeId, ""));
}

function deadline(world: World): { cancel(): void } {
  return world.clock.after(10 * DRAIN_MS, () => world.fail(new OracleError("the world does not come to its end")));
}

async function until(world: World, condition: () => boolean, otherwise: string): Promise<void> {
  const { clock, cluster } = world;
  const endMs = clock.monotonicMs() + DRAIN_MS;
  while (!condition()) {
    if (clock.monotonicMs() > endMs) throw new OracleError(otherwise);
    cluster.reconcile();
    await clock.sleep(25);
  }
}

function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause === undefined ? "" : `\ncaused by ${explain(error.cause)}`;
  return error instanceof OracleError ? `${error.message}${cause}` : `${error.stack ?? error.message}${cause}`;
}
