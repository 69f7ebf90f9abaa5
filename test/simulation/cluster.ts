/**
 * The control plane of a simulated world: decides where the volume should be, and makes it so through the real catalog
 * and the real attachment registry of each node, again and again, as Kubernetes does: publish, attach, detach,
 * unpublish, each repeated until it works.
 */
import { OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import type { AttachmentRegistry } from "../../src/attachment/registry.ts";
import { backendOf } from "../../src/attachment/kernel-devices.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { fenceForDeletion } from "../../src/volume/fencing.ts";
import { VOLUME_BYTES, volumeId } from "./content.ts";
import type { SimNode } from "./node.ts";
import { ProcessClock, SimProcess } from "./sim-process.ts";
import { Session, type SessionWorld } from "./session.ts";
import type { Clock } from "../../src/base/clock.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import type { Line } from "./oracle.ts";
import type { StoreService } from "./sim-store.ts";

/** What the control plane needs of its world. */
export interface ClusterWorld extends SessionWorld {
  readonly clock: Clock;
  readonly service: StoreService;
  readonly nodes: readonly SimNode[];
  stream(number: number): SeededRandom;
  lineOf(node: SimNode): Line | undefined;
  background(work: Promise<unknown>): void;
  expectControlError(node: SimNode | undefined, error: unknown): OperationError;
}

const READY_POLL_MS = 20;
const UNMOUNT_PATIENCE_MS = 60_000;

export class Cluster {
  readonly #world: ClusterWorld;
  readonly sessions = new Map<SimNode, Session>();
  /** Where the volume should be used. */
  target: SimNode | undefined;
  /** Take the volume away from whoever has it without asking. */
  forced = false;
  /** Nodes that must give the volume up. */
  readonly evicted = new Set<SimNode>();
  /** Nodes on which a task is under way. */
  readonly working = new Set<SimNode>();
  #controllers = 0;
  controller: SimProcess;
  #catalog: Catalog;

  constructor(world: ClusterWorld) {
    this.#world = world;
    this.controller = new SimProcess("controller.0");
    this.#catalog = this.#newCatalog();
  }

  /** The controller dies, in the midst of whatever it does, and another one starts. */
  restartController(): void {
    this.controller.kill();
    this.#controllers += 1;
    this.controller = new SimProcess(`controller.${this.#controllers}`);
    this.#catalog = this.#newCatalog();
  }

  /** A call of the controller; "unavailable" where it dies meanwhile. */
  async control<T>(work: (catalog: Catalog) => Promise<T>): Promise<T> {
    return await orDied(this.controller, work(this.#catalog));
  }

  /** Repeats a call of the controller until it works; only errors that a repetition may mend are repeated. */
  async controlUntilDone<T>(work: (catalog: Catalog) => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await this.control(work);
      } catch (error) {
        const { kind } = this.#world.expectControlError(undefined, error);
        if (kind !== "unavailable" && kind !== "busy" && kind !== "corrupt") throw error;
      }
      await this.#world.clock.sleep(100);
    }
  }

  async create(): Promise<void> {
    const { durability } = this.#world.swarm;
    await this.controlUntilDone((catalog) =>
      catalog.create({
        id: volumeId,
        name: "sim",
        sizeBytes: VOLUME_BYTES,
        blockSizeBytes: 4096,
        durability,
        parameters: {},
      }),
    );
  }

  /** Looks at every node, and starts what has to be done there. */
  reconcile(): void {
    for (const node of this.#world.nodes) {
      if (!node.up || this.working.has(node) || node.server?.process.frozen === true) continue;
      const session = this.sessions.get(node);
      const mustGo = session !== undefined && (!session.alive || (this.evicted.has(node) && node !== this.target));
      if (mustGo) this.#work(node, this.detach(node));
      else if (session === undefined && node === this.target) this.#work(node, this.#place(node));
    }
  }

  nodeStopped(node: SimNode): void {
    this.sessions.get(node)?.abandon();
    this.sessions.delete(node);
  }

  /** Publishes the volume to the node and attaches it there. */
  async #place(node: SimNode): Promise<void> {
    const number = await this.#publish(node);
    if (number !== undefined) await this.attach(node, number);
  }

  async #publish(node: SimNode): Promise<number | undefined> {
    try {
      return (await this.control((catalog) => catalog.publish(volumeId, node.name, false))).number;
    } catch (error) {
      const { kind } = this.#world.expectControlError(undefined, error);
      if (kind !== "in-use") return undefined;
    }
    try {
      const holder = await this.control((catalog) => catalog.getPublication(volumeId));
      const other = this.#world.nodes.find((candidate) => candidate.name === holder?.nodeId);
      const inUse = other !== undefined && (this.sessions.has(other) || this.working.has(other));
      if (inUse && !this.forced) {
        this.evicted.add(other);
        return undefined;
      }
      this.#world.coverage.add(inUse ? "taken away by force" : "moved in order");
      await this.control((catalog) => catalog.unpublish(volumeId, holder?.nodeId ?? ""));
    } catch (error) {
      this.#world.expectControlError(undefined, error);
    }
    return undefined;
  }

  /** Attaches the volume, and lets it be used where that worked. */
  async attach(node: SimNode, publication: number, readOnly = false): Promise<void> {
    const location = { url: "", endpoint: "", region: "" };
    const options = { volumeId, location, secrets: {}, readOnly, durability: "" as const, publication };
    try {
      await this.call(node, (registry) => registry.attach(options));
    } catch (error) {
      this.#world.expectControlError(node, error);
      return;
    }
    const device = node.kernel.deviceOf(backendOf(node.name, volumeId));
    const line = this.#world.lineOf(node);
    if (device === undefined || line === undefined || this.sessions.has(node)) return;
    this.#world.coverage.add("attached");
    const random = this.#world.stream(1000 + this.#world.coverage.get("attached"));
    this.sessions.set(node, new Session(this.#world, { node, device, line, random, readOnly }));
  }

  /** Stops the use of the volume on the node, and detaches it; gives up for now where that fails. */
  async detach(node: SimNode): Promise<void> {
    const world = this.#world;
    const session = this.sessions.get(node);
    if (session?.alive === true) {
      await Promise.race([session.quiesce(), world.clock.sleep(UNMOUNT_PATIENCE_MS)]);
      if (session.inFlight > 0) world.coverage.add("unmounted with requests in flight");
    }
    if (session !== undefined) {
      session.failed = true;
      session.device.usage = undefined;
    }
    try {
      await this.call(node, (registry) => registry.detach(volumeId));
      if (this.sessions.get(node) === session) this.sessions.delete(node);
      this.evicted.delete(node);
      world.coverage.add("detached");
      if (node !== this.target) await this.control((catalog) => catalog.unpublish(volumeId, node.name));
    } catch (error) {
      world.expectControlError(node, error);
    }
  }

  /** A call of the node's server, once that is ready; "unavailable" where it dies meanwhile. */
  async call<T>(node: SimNode, work: (registry: AttachmentRegistry) => Promise<T>): Promise<T> {
    for (;;) {
      const server = node.server;
      const registry = server?.registry;
      if (server !== undefined && registry !== undefined) return await orDied(server.process, work(registry));
      if (!node.up) throw new OperationError("unavailable", "simulated: the node is down");
      await this.#world.clock.sleep(READY_POLL_MS);
    }
  }

  #work(node: SimNode, task: Promise<void>): void {
    this.working.add(node);
    this.#world.background(task.finally(() => this.working.delete(node)));
  }

  #newCatalog(): Catalog {
    const world = this.#world;
    const clock = new ProcessClock(world.clock, this.controller);
    const random = world.stream(50 + this.#controllers);
    const bare = world.service.reach(this.controller, "controller");
    const store = new RetryingStore(bare, { clock, random, log: nullLog, limits: { deadlineMs: 20_000 } });
    return new Catalog({
      store,
      clock,
      random,
      log: nullLog,
      fenceForDeletion: (volume) => fenceForDeletion({ store, clock, random }, volume, "controller"),
    });
  }
}

async function orDied<T>(process: SimProcess, work: Promise<T>): Promise<T> {
  const died = process.died.then((): never => {
    throw new OperationError("unavailable", `simulated: ${process.name} died`);
  });
  return await Promise.race([work, died]);
}
