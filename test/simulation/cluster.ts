/**
 * The control plane of a simulated world: decides where the volume should be, and makes it so through the real catalog
 * and the real attachment registry of each node, again and again, as Kubernetes does: publish, attach, detach,
 * unpublish, each repeated until it works.
 */
import type { Clock } from "../../src/base/clock.ts";
import { OperationError } from "../../src/base/errors.ts";
import type { Log } from "../../src/base/log.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import type { AttachmentRegistry } from "../../src/attachment/registry.ts";
import { backendOf } from "../../src/attachment/kernel-devices.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { fenceForDeletion } from "../../src/volume/fencing.ts";
import type { VolumeMeta } from "../../src/volume/format/control-records.ts";
import { VOLUME_BYTES, volumeId } from "./content.ts";
import type { SimNode } from "./node.ts";
import type { Line, Oracle } from "./oracle.ts";
import { ProcessClock, SimProcess } from "./sim-process.ts";
import type { StoreService } from "./sim-store.ts";
import { Session, type SessionWorld } from "./session.ts";

/** What the control plane needs of its world. */
export interface ClusterWorld extends SessionWorld {
  readonly clock: Clock;
  readonly log: Log;
  readonly service: StoreService;
  readonly nodes: readonly SimNode[];
  stream(number: number): SeededRandom;
  oracleOf(uid: string): Oracle;
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
  /** The next attachment is for reading alone. */
  readOnly = false;
  /** Nodes that must give the volume up. */
  readonly evicted = new Set<SimNode>();
  /** Nodes on which a task is under way. */
  readonly working = new Set<SimNode>();
  /** The volume is being deleted and made again. */
  recreating = false;
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

  /** Repeats a call of the controller until it works. `onError` may mend something before the next time. */
  async controlUntilDone<T>(
    work: (catalog: Catalog) => Promise<T>,
    onError?: (error: OperationError) => Promise<void>,
  ): Promise<T> {
    for (;;) {
      try {
        return await this.control(work);
      } catch (error) {
        const failure = this.#world.expectControlError(undefined, error);
        await onError?.(failure);
      }
      await this.#world.clock.sleep(100);
    }
  }

  async create(): Promise<VolumeMeta> {
    const { durability } = this.#world.swarm;
    const sizes = { sizeBytes: VOLUME_BYTES, blockSizeBytes: 4096 };
    return await this.controlUntilDone((catalog) =>
      catalog.create({ id: volumeId, name: "sim", ...sizes, durability, parameters: {} }),
    );
  }

  /** Deletes the volume, whoever has it; resolves when it is gone. */
  async delete(): Promise<void> {
    const world = this.#world;
    const { uid } = await this.controlUntilDone((catalog) => catalog.must(volumeId));
    const takeAway = async (error: OperationError): Promise<void> => {
      if (error.kind !== "in-use") return;
      await this.control((catalog) => catalog.unpublish(volumeId, "")).catch((cause: unknown) => {
        world.expectControlError(undefined, cause);
      });
    };
    await this.controlUntilDone((catalog) => catalog.delete(volumeId), takeAway);
    world.oracleOf(uid).end();
    world.coverage.add("volume deleted");
  }

  /** Deletes the volume while it may be in use, and makes a new one of the same name. */
  async recreate(target: SimNode): Promise<void> {
    this.recreating = true;
    this.target = undefined;
    for (const node of this.#world.nodes) this.evicted.add(node);
    await this.delete();
    await this.create();
    this.#world.coverage.add("volume made again under its name");
    this.target = target;
    this.recreating = false;
  }

  /** Looks at every node, and starts what has to be done there. */
  reconcile(): void {
    for (const node of this.#world.nodes) {
      if (!node.up || this.working.has(node) || node.server?.process.frozen === true) continue;
      const session = this.sessions.get(node);
      const mustGo = session !== undefined && this.#mustGo(session);
      if (mustGo) this.#work(node, this.detach(node));
      else if (session === undefined && node === this.target) this.#work(node, this.#place(node));
    }
  }

  #mustGo({ alive, node, readOnly }: Session): boolean {
    return !alive || (node === this.target ? readOnly !== this.readOnly : this.evicted.has(node));
  }

  nodeStopped(node: SimNode): void {
    this.sessions.get(node)?.abandon();
    this.sessions.delete(node);
  }

  /** Publishes the volume to the node and attaches it there. */
  async #place(node: SimNode): Promise<void> {
    const { readOnly } = this;
    const number = await this.#publish(node, readOnly);
    if (number !== undefined) await this.attach(node, number, readOnly);
  }

  async #publish(node: SimNode, readOnly: boolean): Promise<number | undefined> {
    try {
      return (await this.control((catalog) => catalog.publish(volumeId, node.name, readOnly))).number;
    } catch (error) {
      const { kind } = this.#world.expectControlError(undefined, error);
      if (kind !== "in-use" && kind !== "conflict") return undefined;
    }
    try {
      const holder = await this.control((catalog) => catalog.getPublication(volumeId));
      const other = this.#world.nodes.find((candidate) => candidate.name === holder?.nodeId);
      const inUse = other !== undefined && (this.sessions.has(other) || (other !== node && this.working.has(other)));
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
      const { kind } = this.#world.expectControlError(node, error);
      // Attached with other access, by an earlier call: it goes first.
      if (kind === "conflict") await this.detach(node);
      return;
    }
    const device = node.kernel.deviceOf(backendOf(node.name, volumeId));
    const line = this.#world.lineOf(node);
    if (device === undefined || line === undefined || this.sessions.has(node)) return;
    this.#world.coverage.add(readOnly ? "attached for reading" : "attached");
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
    const { clock: worldClock, log, service } = this.#world;
    const clock = new ProcessClock(worldClock, this.controller);
    const random = this.#world.stream(50 + this.#controllers);
    const bare = service.reach(this.controller, "controller");
    const store = new RetryingStore(bare, { clock, random, log, limits: { deadlineMs: 20_000 } });
    return new Catalog({
      store,
      clock,
      random,
      log,
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
