/**
 * Who uses a volume's device on one node: keeps requests in flight, writes a version into every block and compares what
 * it reads with the oracle. Ends for good at the first I/O error, as a file system would.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { BLOCK, decodeVersions, encodeVersion, OFFSET_BYTES } from "./content.ts";
import type { SimDevice } from "./kernel.ts";
import type { SimNode } from "./node.ts";
import type { Line, Oracle } from "./oracle.ts";
import type { Coverage } from "./coverage.ts";
import type { Swarm } from "./swarm.ts";
import type { Trace } from "./trace.ts";

const READ = 0;
const WRITE = 1;
const FLUSH = 3;
const TRIM = 4;
const WRITE_ZEROES = 6;
const FUA = 1;

/** What a session needs of its world. */
export interface SessionWorld {
  readonly swarm: Swarm;
  readonly oracle: Oracle;
  readonly coverage: Coverage;
  readonly trace: Trace;
  readonly maxWriteBlocks: number;
  guard(work: () => void): void;
  expectIoError(session: Session, errno: number): void;
}

export class Session {
  readonly node: SimNode;
  readonly device: SimDevice;
  readonly line: Line;
  readonly readOnly: boolean;
  failed = false;
  /** No new request: it is being unmounted. */
  stopped = false;
  inFlight = 0;
  readonly #world: SessionWorld;
  readonly #random: SeededRandom;
  /** Blocks that an unanswered write covers. */
  readonly #busy: Uint8Array;
  readonly #idle: (() => void)[] = [];

  constructor(
    world: SessionWorld,
    place: { node: SimNode; device: SimDevice; line: Line; random: SeededRandom; readOnly: boolean },
  ) {
    this.#world = world;
    this.node = place.node;
    this.device = place.device;
    this.line = place.line;
    this.readOnly = place.readOnly;
    this.#random = place.random;
    this.#busy = new Uint8Array(world.swarm.blocks);
    this.device.usage = "mounted";
  }

  get alive(): boolean {
    return !this.failed && !this.device.gone;
  }

  /** One random request, where there is room for one. */
  step(): void {
    if (!this.alive || this.stopped || this.inFlight >= this.#world.swarm.depth) return;
    const kind = this.#random.below(100);
    if (this.readOnly || kind < 22) this.#read();
    else if (kind < 72) this.#write(this.#random.below(12) === 0);
    else if (kind < 84) this.#zero();
    else this.flush();
  }

  flush(): void {
    const covered = this.#world.oracle.beginFlush(this.line);
    this.#submit({ type: FLUSH, flags: 0, lba: 0, blocks: 0, payload: undefined }, (data) => {
      if (data === undefined) return;
      this.#world.coverage.add("flush acknowledged");
      this.#world.oracle.endFlush(this.line, covered);
    });
  }

  /** No new requests; resolves when all are answered. */
  async quiesce(): Promise<void> {
    this.stopped = true;
    if (this.inFlight > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
    this.device.usage = undefined;
  }

  /** The user's machine is gone: nobody waits for an answer any more. */
  abandon(): void {
    this.failed = true;
    this.#world.oracle.abandonAll(this.line);
  }

  #range(most: number): { lba: number; blocks: number } {
    const lba = this.#random.below(this.#busy.length);
    return { lba, blocks: 1 + this.#random.below(Math.min(most, this.#busy.length - lba)) };
  }

  #isBusy(lba: number, blocks: number): boolean {
    for (let block = lba; block < lba + blocks; block += 1) if (this.#busy[block] === 1) return true;
    return false;
  }

  #write(fua: boolean): void {
    const { lba, blocks } = this.#range(this.#random.below(6) === 0 ? this.#world.maxWriteBlocks : 3);
    if (this.#isBusy(lba, blocks)) return;
    const { oracle, coverage } = this.#world;
    const operation = oracle.issue(this.line, lba, blocks, false);
    const payload = encodeVersion(operation.id, lba, blocks);
    this.#busy.fill(1, lba, lba + blocks);
    this.#submit({ type: WRITE, flags: fua ? FUA : 0, lba, blocks, payload }, (data) => {
      this.#busy.fill(0, lba, lba + blocks);
      coverage.add(fua ? "fua write answered" : "write answered");
      if (data === undefined) oracle.abandoned(operation);
      else oracle.answered(this.line, operation, fua);
    });
  }

  #zero(): void {
    const { lba, blocks } = this.#range(this.#random.below(5) === 0 ? this.#busy.length : 6);
    if (this.#isBusy(lba, blocks)) return;
    const { oracle, coverage } = this.#world;
    const operation = oracle.issue(this.line, lba, blocks, true);
    const type = this.#random.below(2) === 0 ? TRIM : WRITE_ZEROES;
    const fua = this.#random.below(10) === 0;
    this.#busy.fill(1, lba, lba + blocks);
    this.#submit({ type, flags: fua ? FUA : 0, lba, blocks, payload: undefined }, (data) => {
      this.#busy.fill(0, lba, lba + blocks);
      coverage.add(type === TRIM ? "trim answered" : "zeroes answered");
      if (data === undefined) oracle.abandoned(operation);
      else oracle.answered(this.line, operation, fua);
    });
  }

  #read(): void {
    const { lba, blocks } = this.#range(this.#random.below(8) === 0 ? 64 : 4);
    const { oracle, coverage } = this.#world;
    const read = oracle.beginRead(this.line, lba, blocks);
    this.#submit({ type: READ, flags: 0, lba, blocks, payload: undefined }, (data) => {
      coverage.add("read answered");
      oracle.endRead(this.line, read, data === undefined ? undefined : decodeVersions(data, lba));
    });
  }

  #submit(
    request: { type: number; flags: number; lba: number; blocks: number; payload: Buffer | undefined },
    done: (data: Buffer | undefined) => void,
  ): void {
    const { type, flags, lba, blocks, payload } = request;
    const world = this.#world;
    this.inFlight += 1;
    world.trace.add(`${this.node.name} request ${type} ${flags} ${lba} ${blocks}`);
    const offset = type === FLUSH ? 0 : OFFSET_BYTES + lba * BLOCK;
    const finish = (errno: number, data: Buffer | undefined): void => {
      this.inFlight -= 1;
      world.trace.add(`${this.node.name} answer ${type} ${lba} ${blocks} ${errno}`);
      if (errno !== 0) this.#error(errno);
      done(errno === 0 ? (data ?? Buffer.alloc(0)) : undefined);
      if (this.inFlight === 0) for (const idle of this.#idle.splice(0)) idle();
    };
    this.device.submit({
      type,
      flags,
      offset,
      length: blocks * BLOCK,
      payload,
      done: (...answer) => world.guard(() => finish(...answer)),
    });
  }

  #error(errno: number): void {
    this.#world.coverage.add("i/o error seen by a user");
    if (!this.failed) this.#world.expectIoError(this, errno);
    this.failed = true;
  }
}
