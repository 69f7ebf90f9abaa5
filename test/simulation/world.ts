/**
 * One simulated world: a cluster of nodes, the store they share, the volume they fight for, and the oracle that knows
 * what it may hold. Everything in it is drawn from one seed. Actions (actions.ts) change it, checks stand where
 * something is observed: here when a volume is opened, in session.ts when a request is answered.
 */
import { AssertionError } from "../../src/base/assert.ts";
import { isKind, OperationError } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import type { HostedVolume } from "../../src/attachment/volume-worker.ts";
import type { OpenRequest } from "../../src/attachment/volume-host.ts";
import { parseKey } from "../../src/volume/keys.ts";
import { Cluster } from "./cluster.ts";
import { BLOCK, decodeVersions, OFFSET_BYTES } from "./content.ts";
import { Coverage } from "./coverage.ts";
import { SimNode } from "./node.ts";
import { Line, Oracle, OracleError } from "./oracle.ts";
import type { Session } from "./session.ts";
import type { SimProcess } from "./sim-process.ts";
import type { SimServer } from "./server.ts";
import { StoreService } from "./sim-store.ts";
import { drawSwarm, type Swarm } from "./swarm.ts";
import { Trace } from "./trace.ts";
import { VirtualClock } from "./virtual-clock.ts";

/** Offset of the byte in a log object that says what it is, and its value for START. */
const TYPE_OFFSET = 64;
const TYPE_START = 3;
/** More events than any world of sane length has: something goes round in circles. */
const MAX_EVENTS = 3_000_000;

export class World {
  readonly seed: number;
  readonly swarm: Swarm;
  readonly coverage = new Coverage();
  readonly clock: VirtualClock;
  readonly trace: Trace;
  readonly service: StoreService;
  readonly oracle: Oracle;
  readonly nodes: SimNode[];
  readonly cluster: Cluster;
  /** Blocks of one write at most: what fits into a file of the journal. */
  readonly maxWriteBlocks: number;
  /** The newest epoch that anybody has claimed, and by which process. */
  claim = { epoch: 0, process: "" };
  crashes = 0;
  /** How long to wait before the next action. */
  pauseMs = 0;
  events = 0;
  /** Rejects with the first thing that went wrong. */
  readonly failed: Promise<never>;
  readonly #fail: (error: unknown) => void;
  readonly #lines = new Map<string, Line>();

  constructor(seed: number, without: ReadonlySet<string>) {
    this.seed = seed;
    const { promise, reject } = Promise.withResolvers<never>();
    promise.catch(() => undefined);
    this.failed = promise;
    this.#fail = reject;
    this.swarm = drawSwarm(this.stream(1), without);
    for (const name of this.swarm.enabled) this.coverage.add(`world with ${name}`);
    this.coverage.add(`world of durability ${this.swarm.durability}`);
    this.clock = new VirtualClock({
      random: this.stream(2),
      idle: () => this.fail(new OracleError("everything waits for ever")),
      beforeEach: (fired) => {
        this.events = fired;
        if (fired > MAX_EVENTS) this.fail(new OracleError("events without end"));
      },
    });
    this.trace = new Trace(() => this.clock.monotonicMs());
    this.oracle = new Oracle(this.swarm.blocks, this.swarm.durability);
    this.service = new StoreService({
      clock: this.clock,
      random: this.stream(3),
      coverage: this.coverage,
      trace: this.trace,
      faults: this.swarm.store,
      created: (key, body, process) => this.#created(key, body, process),
    });
    this.maxWriteBlocks = Math.floor((this.swarm.journalFileBytes - 8192) / (BLOCK + 16));
    this.nodes = Array.from({ length: this.swarm.nodes }, (_, index) => this.addNode(`node-${index}`));
    this.cluster = new Cluster(this);
  }

  /** A stream of random numbers of its own: what one part draws changes nothing for the others. */
  stream(number: number): SeededRandom {
    return new SeededRandom(mixed(mixed(this.seed) + number));
  }

  addNode(name: string): SimNode {
    return new SimNode(this, name, this.stream(100 + name.length * 31 + name.charCodeAt(name.length - 1)));
  }

  fail(error: unknown): void {
    this.#fail(error);
  }

  /** Runs `work`; what it throws fails the world. */
  guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.fail(error);
    }
  }

  /** Runs a task of the world in the background; what it rejects with fails the world. */
  background(work: Promise<unknown>): void {
    work.catch((error: unknown) => this.fail(error));
  }

  lineOf(node: SimNode): Line | undefined {
    return this.#lines.get(node.name);
  }

  nodeStopped(node: SimNode): void {
    this.cluster.nodeStopped(node);
    this.#lines.delete(node.name);
  }

  /** True where damage in the store or on the node's disk, or its errors, explains an error of I/O on this node. */
  hasDamage(node: SimNode): boolean {
    const { damagedBodies, rotten } = this.service;
    return rotten.size > 0 || (damagedBodies.get(node.name) ?? 0) > 0 || node.diskFailures > 0;
  }

  expectDiskError(node: SimNode, error: unknown, what: string): void {
    if (error instanceof OperationError && node.diskFailures > 0) return;
    this.fail(new OracleError(`${what} on ${node.name} without cause`, { cause: error }));
  }

  /** A user has seen an I/O error: there must be a cause for it in this world. */
  expectIoError(session: Session, errno: number): void {
    const { node, line, device } = session;
    const isFenced = line.superseded || this.claim.epoch > line.epoch;
    if (device.gone || isFenced || this.hasDamage(node)) return;
    this.fail(new OracleError(`an I/O error without cause on ${node.name}: errno ${errno}`));
  }

  /** What a control call may fail with; a bug, or damage where none was done, fails the world. */
  expectControlError(node: SimNode | undefined, error: unknown): OperationError {
    if (!(error instanceof OperationError)) throw error;
    const damaged = this.service.damagedBodies.size > 0 || this.nodes.some((candidate) => this.hasDamage(candidate));
    if (error.kind === "corrupt" && !damaged) {
      throw new OracleError("corruption is reported where there is none", { cause: error });
    }
    this.coverage.add(`control call: ${error.kind}`);
    this.trace.add(`${node?.name ?? "controller"} control call failed: ${error.message}`);
    return error;
  }

  /** An engine has the volume open: its image must be a moment of history. */
  async opened(node: SimNode, request: OpenRequest, volume: HostedVolume, server: SimServer): Promise<void> {
    const { epoch } = volume.status();
    this.trace.add(`${server.process.name} has opened epoch ${epoch} ${request.mode}`);
    let line: Line;
    try {
      const image = await this.readImage(node, volume);
      line = this.oracle.opened(node.name, epoch, image, node.risk);
      node.risk = "none";
      this.coverage.add(`image checked after ${request.mode}`);
    } catch (error) {
      if (error instanceof OracleError || error instanceof AssertionError) {
        this.fail(error);
        throw error;
      }
      // Fenced while it was read, or closed: it will serve nobody.
      line = new Line(node.name, epoch, new Int32Array(this.swarm.blocks).fill(-1));
      line.superseded = true;
    }
    this.#lines.set(node.name, line);
  }

  /** A volume was closed; where it had not failed, S3 holds everything. */
  closed(node: SimNode, _request: OpenRequest, volume: HostedVolume): void {
    const line = this.#lines.get(node.name);
    this.#lines.delete(node.name);
    this.trace.add(`${node.name} has closed its volume ${volume.status().failure ?? "well"}`);
    if (line === undefined || volume.status().failure !== undefined) return;
    this.coverage.add("closed well");
    this.guard(() => this.oracle.closed(line));
  }

  /** The version of every block; -1 where damage that was done hides it. */
  async readImage(node: SimNode, volume: HostedVolume): Promise<Int32Array> {
    const { blocks } = this.swarm;
    const image = new Int32Array(blocks).fill(-1);
    for (let step = blocks, lba = 0; lba < blocks;) {
      const count = Math.min(step, blocks - lba);
      const target = Buffer.alloc(count * BLOCK, 0xee);
      try {
        await volume.device.read(OFFSET_BYTES + lba * BLOCK, target);
        image.set(decodeVersions(target, lba), lba);
        lba += count;
      } catch (error) {
        if (!isKind(error, "corrupt")) throw error;
        if (!this.hasDamage(node)) throw new OracleError("damage is reported where none was done", { cause: error });
        // Smaller and smaller ranges, until the damaged block stands alone.
        if (step === 1) lba += 1;
        step = step === 1 ? 16 : step > 16 ? 16 : 1;
      }
    }
    return image;
  }

  #created(key: string, body: Buffer, process: SimProcess): void {
    const parsed = parseKey(key);
    if (parsed?.kind === "epoch" && parsed.epoch > this.claim.epoch) {
      this.claim = { epoch: parsed.epoch, process: process.name };
    }
    if (parsed?.kind !== "segment" || parsed.sequence !== 0 || body[TYPE_OFFSET] !== TYPE_START) return;
    this.oracle.started(parsed.epoch, process.name.split(".")[0]);
  }
}

/** Spreads a number over 32 bits, so that streams of neighbouring numbers have nothing in common. */
function mixed(number: number): number {
  let bits = Math.imul(number ^ (number >>> 16), 0x7feb352d);
  bits = Math.imul(bits ^ (bits >>> 15), 0x846ca68b);
  return (bits ^ (bits >>> 16)) >>> 0;
}
