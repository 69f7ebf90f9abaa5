/**
 * One simulated world: a cluster of nodes, the store they share, the volume they fight for, and the oracle that knows
 * what it may hold. Everything in it is drawn from one seed. Actions (actions.ts) change it, checks stand where
 * something is observed: here when a volume is opened or closed, in session.ts when a request is answered.
 */
import { isKind, OperationError } from "../../src/base/errors.ts";
import type { Log } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import type { HostedVolume } from "../../src/attachment/volume-worker.ts";
import type { OpenRequest } from "../../src/attachment/volume-host.ts";
import { decodeConfirmation, decodeNameRecord } from "../../src/volume/format/control-records.ts";
import { parseKey } from "../../src/volume/keys.ts";
import { Cluster } from "./cluster.ts";
import { BLOCK, decodeVersions, Layout } from "./content.ts";
import { Coverage } from "./coverage.ts";
import { coverageLog } from "./coverage-log.ts";
import { SimNode } from "./node.ts";
import { type Line, Oracle, OracleError } from "./oracle.ts";
import type { Session } from "./session.ts";
import type { SimProcess } from "./sim-process.ts";
import type { SimServer } from "./server.ts";
import { StoreService } from "./sim-store.ts";
import { drawSwarm, type Swarm } from "./swarm.ts";
import { Trace } from "./trace.ts";
import { VirtualClock } from "./virtual-clock.ts";

/** Offset of the byte in a log object that says what it is, and its value for START and FENCE. */
const TYPE_OFFSET = 64;
const TYPE_FENCE = 2;
const TYPE_START = 3;
/** More events than any world of sane length has: something goes round in circles. */
const MAX_EVENTS = 3_000_000;

export class World {
  readonly seed: number;
  readonly swarm: Swarm;
  readonly layout: Layout;
  readonly coverage = new Coverage();
  readonly log: Log;
  readonly clock: VirtualClock;
  readonly trace: Trace;
  readonly service: StoreService;
  readonly nodes: SimNode[];
  readonly cluster: Cluster;
  /** Blocks of one write at most: what fits into a file of the journal. */
  readonly maxWriteBlocks: number;
  crashes = 0;
  /** Those of them at which a request was unanswered, or a write not known to be in S3. */
  crashesAtRisk = 0;
  #isAtRisk = false;
  /** What lies on the nodes' disks has partly left their memory. */
  coldDisks = false;
  /** How long to wait before the next action. */
  pauseMs = 0;
  events = 0;
  /** Rejects with the first thing that went wrong. */
  readonly failed: Promise<never>;
  readonly #fail: (error: unknown) => void;
  /** One oracle an incarnation of the volume, by uid. */
  readonly #oracles = new Map<string, Oracle>();
  /** The incarnation that was made last. */
  lastUid = "";
  /** Every incarnation that ever had the name. */
  readonly named = new Set<string>();
  /** The incarnation that a process has started an epoch of last. */
  readonly #startedBy = new Map<string, string>();
  readonly #lines = new Map<SimNode, Line>();
  /** Room for the bytes of an image, for the next one that is read; a read that never ends keeps its own. */
  readonly #imageMemory: Buffer[] = [];

  constructor(seed: number, without: ReadonlySet<string>) {
    this.seed = seed;
    const { promise, reject } = Promise.withResolvers<never>();
    promise.catch(() => undefined);
    this.failed = promise;
    this.#fail = reject;
    this.log = coverageLog(this.coverage);
    this.swarm = drawSwarm(this.stream(1), without);
    this.layout = new Layout(this.swarm.scale);
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

  /** Notes whether a crash would put writes at risk now; before whatever may be one. */
  lookForRisk(): void {
    this.#isAtRisk = false;
    for (const { inFlight, line } of this.cluster.sessions.values()) {
      if (inFlight > 0 || line.operations.some((operation) => !operation.durable)) this.#isAtRisk = true;
    }
  }

  countCrash(): void {
    this.crashes += 1;
    if (this.#isAtRisk) this.crashesAtRisk += 1;
  }

  oracleOf(uid: string): Oracle {
    let oracle = this.#oracles.get(uid);
    if (oracle === undefined) {
      oracle = new Oracle(this.layout.blocks, this.swarm.durability);
      this.#oracles.set(uid, oracle);
    }
    return oracle;
  }

  lineOf(node: SimNode): Line | undefined {
    return this.#lines.get(node);
  }

  nodeStopped(node: SimNode): void {
    this.cluster.nodeStopped(node);
    this.#lines.delete(node);
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
    const { ended, deleted, newestClaim } = line.oracle;
    const isFenced = line.superseded || newestClaim > line.epoch || ended || deleted;
    if (device.gone || isFenced || this.hasDamage(node)) return;
    this.fail(new OracleError(`an I/O error without cause on ${node.name}: errno ${errno}`));
  }

  /** What a control call may fail with; a bug, or damage where none was done, fails the world. */
  expectControlError(node: SimNode | undefined, error: unknown): OperationError {
    if (!(error instanceof OperationError)) throw error;
    const isDeleted = [...this.#oracles.values()].some((oracle) => oracle.deleted && !oracle.ended);
    const damaged =
      isDeleted || this.service.damagedBodies.size > 0 || this.nodes.some((candidate) => this.hasDamage(candidate));
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
    const oracle = this.oracleOf(this.#startedBy.get(server.process.name) ?? "");
    this.trace.add(`${server.process.name} has opened epoch ${epoch} ${request.mode}`);
    try {
      mustHaveTheRight(oracle, epoch, request);
      const image = await this.readImage(node, volume, oracle);
      // A device that has waited may miss nothing that it was told of, whatever became of the journal: better none at all.
      const clientWaits = node.kernel.devices.length > 0;
      const line = oracle.opened(node.name, epoch, image, clientWaits ? "none" : node.risk);
      node.settleRisk();
      // Who comes too late sees the volume as it was before its successors wrote, and can make nothing last.
      const isWritten =
        !oracle.deleted && ((oracle.everWritten && !line.superseded) || image.some((version) => version > 0));
      if (isWritten && volume.status().neverWritten) {
        throw new OracleError("a volume that was written is said to be empty: it would be formatted");
      }
      this.#lines.set(node, line);
      this.coverage.add(`image checked after ${request.mode}`);
    } catch (error) {
      if (!(error instanceof OperationError)) {
        this.fail(error);
        return await new Promise<never>(() => undefined);
      }
      // Fenced while it was read, or closed: it will serve nobody.
      this.#lines.set(node, oracle.lostLine(node.name, epoch, new Int32Array(this.layout.blocks).fill(-1)));
    }
  }

  /** A volume was closed; where it had not failed, S3 holds everything. */
  closed(node: SimNode, _request: OpenRequest, volume: HostedVolume): void {
    const line = this.#lines.get(node);
    this.#lines.delete(node);
    this.trace.add(`${node.name} has closed its volume ${volume.status().failure ?? "well"}`);
    if (line === undefined || volume.status().failure !== undefined) return;
    this.coverage.add("closed well");
    this.guard(() => line.oracle.closed(line));
  }

  /** The version of every block; -1 where damage that was done hides it. */
  async readImage(node: SimNode, volume: HostedVolume, oracle: Oracle): Promise<Int32Array> {
    const image = new Int32Array(this.layout.blocks).fill(-1);
    const memory = this.#imageMemory.pop() ?? Buffer.allocUnsafeSlow(this.layout.blocks * BLOCK);
    for (const { first, count } of this.layout.groups) {
      for (let step = count, lba = first; lba < first + count;) {
        const blocks = Math.min(step, first + count - lba);
        const target = memory.subarray(0, blocks * BLOCK).fill(0xee);
        try {
          await volume.device.read(this.layout.offsetOf(lba), target);
          image.set(decodeVersions(target, lba), lba);
          lba += blocks;
        } catch (error) {
          if (isKind(error, "unavailable") && isServing(volume)) {
            // The disk fails now and then; it is asked again until it answers or the volume has failed.
            await this.clock.sleep(10);
            continue;
          }
          if (!isKind(error, "corrupt")) throw error;
          // While the volume is being deleted, its objects go.
          if (!this.hasDamage(node) && !oracle.deleted)
            throw new OracleError("damage is reported where none was done", { cause: error });
          // Smaller ranges, until the damaged block stands alone.
          if (step === 1) lba += 1;
          step = step > 8 ? 8 : step > 1 ? 1 : 8;
          this.coverage.add("damaged blocks found");
        }
      }
    }
    this.#imageMemory.push(memory);
    return image;
  }

  /** A volume has got the name: every one before must have been given up. */
  #confirmed(uid: string): void {
    if (this.named.has(uid)) return;
    const other = [...this.named].find((earlier) => !this.oracleOf(earlier).deleted);
    if (other !== undefined) this.fail(new OracleError(`the name was given to ${uid} while ${other} had it`));
    this.named.add(uid);
    this.lastUid = uid;
  }

  #created(key: string, body: Buffer, process: SimProcess): void {
    const parsed = parseKey(key);
    if (parsed === undefined || parsed.kind === "location" || parsed.kind === "node") return;
    if (parsed.kind === "name") {
      this.coverage.add("tombstone" in decodeNameRecord(body, parsed) ? "name freed by a tombstone" : "name bound");
      return;
    }
    if (parsed.kind === "removal") return;
    if (parsed.kind === "meta") {
      // Without resizes, every record but the first marks the volume as deleted.
      if (parsed.number > 1) this.oracleOf(parsed.uid).deleted = true;
      else if (decodeConfirmation(body, parsed).confirmed) this.#confirmed(parsed.uid);
      else this.coverage.add("name refused to what came late");
      return;
    }
    const oracle = this.oracleOf(parsed.uid);
    if (parsed.kind === "epoch") oracle.claimed(parsed.epoch);
    else if (parsed.kind === "publication") oracle.publication = Math.max(oracle.publication, parsed.number);
    else if (parsed.kind !== "segment") this.coverage.add(`${parsed.kind} written`);
    else if (body[TYPE_OFFSET] === TYPE_FENCE)
      this.coverage.add(`fence ${parsed.sequence === 0 ? "for a START" : "behind a log"}`);
    else if (body[TYPE_OFFSET] === TYPE_START) {
      this.#startedBy.set(process.name, parsed.uid);
      oracle.started(parsed.epoch, process.name.split(".")[0]);
    }
  }
}

function isServing(volume: HostedVolume): boolean {
  const { failure, state } = volume.status();
  return failure === undefined && state === "open";
}

/** An owner must not have begun where the control plane had taken its right away before it claimed the epoch. */
function mustHaveTheRight(oracle: Oracle, epoch: number, request: OpenRequest): void {
  const claim = oracle.claims.get(epoch);
  if (claim === undefined) throw new OracleError(`epoch ${epoch} was begun without a claim`);
  if (claim.deleted || oracle.startedTooLate.has(epoch))
    throw new OracleError("a volume was opened after it was marked as deleted");
  const { mode, publication } = request;
  if (mode === "resume" || publication === 0 || claim.publication === publication) return;
  throw new OracleError(`publication ${publication} was used after ${claim.publication} had replaced it`);
}

/** Spreads a number over 32 bits, so that streams of neighbouring numbers have nothing in common. */
function mixed(number: number): number {
  let bits = Math.imul(number ^ (number >>> 16), 0x7feb352d);
  bits = Math.imul(bits ^ (bits >>> 15), 0x846ca68b);
  return (bits ^ (bits >>> 16)) >>> 0;
}
