/**
 * Who uses a volume's device on one node: keeps requests in flight, writes a version into every block and compares what
 * it reads with the oracle. Ends for good at the first I/O error, as a file system would.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { SHARD_BLOCKS } from "../../src/volume/format/map-page.ts";
import { BLOCK, decodeVersions, encodeVersion, type Layout, SHARDS } from "./content.ts";
import type { Coverage } from "./coverage.ts";
import type { SimDevice } from "./kernel.ts";
import type { SimNode } from "./node.ts";
import type { Line, Oracle } from "./oracle.ts";
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
  readonly layout: Layout;
  readonly coverage: Coverage;
  readonly trace: Trace;
  readonly maxWriteBlocks: number;
  guard(work: () => void): void;
  expectIoError(session: Session, errno: number): void;
}

interface Range {
  lba: number;
  blocks: number;
}

interface DeviceRequest {
  type: number;
  flags: number;
  offset: number;
  length: number;
  payload: Buffer | undefined;
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
  readonly #oracle: Oracle;
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
    this.#oracle = place.line.oracle;
    this.#busy = new Uint8Array(world.layout.blocks);
    this.device.usage = "mounted";
  }

  get alive(): boolean {
    return !this.failed && !this.device.gone;
  }

  /** One random request, or a few that belong together, where there is room for them. */
  step(depth = this.#world.swarm.depth): void {
    if (!this.alive || this.stopped || this.inFlight >= depth) return;
    const kind = this.#random.below(100);
    if (this.readOnly || kind < 22) this.#read(this.#range(this.#random.below(8) === 0 ? 64 : 4));
    else if (kind < 68) this.#write(this.#random.below(12) === 0);
    else if (kind < 80) this.#zero(this.#zeroRange(), this.#random.below(10) === 0);
    else if (kind < 96) this.flush();
    else this.#rewrite();
  }

  flush(): void {
    const covered = this.#oracle.beginFlush(this.line);
    this.#submit({ type: FLUSH, flags: 0, offset: 0, length: 0, payload: undefined }, "", (data) => {
      if (data === undefined) return;
      this.#world.coverage.add("flush acknowledged");
      this.#oracle.endFlush(this.line, covered);
    });
  }

  /** No new requests; resolves when all are answered. */
  async quiesce(): Promise<void> {
    this.stopped = true;
    await this.idle();
    this.device.usage = undefined;
  }

  /** Resolves when all requests are answered. */
  async idle(): Promise<void> {
    if (this.inFlight > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** The user's machine is gone: nobody waits for an answer any more. */
  abandon(): void {
    this.failed = true;
    this.#oracle.abandonAll(this.line);
  }

  #range(most: number): Range {
    const lba = this.#random.below(this.#busy.length);
    const { first, count } = this.#world.layout.groupOf(lba);
    return { lba, blocks: 1 + this.#random.below(Math.min(most, first + count - lba)) };
  }

  /** A few blocks, many, or a whole shard of the map. */
  #zeroRange(): Range & { shard?: number } {
    const draw = this.#random.below(20);
    if (draw < 14) return this.#range(6);
    if (draw < 17) {
      const lba = this.#random.below(this.#busy.length);
      return { lba, blocks: 1 + this.#random.below(this.#busy.length - lba) };
    }
    const shard = this.#random.below(SHARDS);
    return { ...this.#world.layout.inShard(shard), shard };
  }

  #isBusy({ lba, blocks }: Range): boolean {
    for (let block = lba; block < lba + blocks; block += 1) if (this.#busy[block] === 1) return true;
    return false;
  }

  #write(fua: boolean): void {
    const range = this.#range(this.#random.below(6) === 0 ? this.#world.maxWriteBlocks : 3);
    if (this.#isBusy(range)) return;
    const { lba, blocks } = range;
    const operation = this.#oracle.issue(this.line, lba, blocks, false);
    const payload = encodeVersion(operation.id, lba, blocks);
    const offset = this.#world.layout.offsetOf(lba);
    this.#busy.fill(1, lba, lba + blocks);
    const request = { type: WRITE, flags: fua ? FUA : 0, offset, length: payload.length, payload };
    this.#submit(request, `${lba} ${blocks} = ${operation.id}`, (data) => {
      this.#busy.fill(0, lba, lba + blocks);
      this.#world.coverage.add(fua ? "fua write answered" : "write answered");
      if (data === undefined) this.#oracle.abandoned(operation);
      else this.#oracle.answered(this.line, operation, fua);
    });
  }

  #zero(range: Range & { shard?: number }, fua: boolean): void {
    const { lba, blocks, shard } = range;
    if (this.#isBusy(range)) return;
    const { layout, coverage } = this.#world;
    const isTrim = this.#random.below(2) === 0;
    const whole = SHARD_BLOCKS * BLOCK;
    const offset = shard === undefined ? layout.offsetOf(lba) : shard * whole;
    const length = shard === undefined ? layout.lengthOf(lba, blocks) : whole;
    const operation = this.#oracle.issue(this.line, lba, blocks, true);
    this.#busy.fill(1, lba, lba + blocks);
    const request = { type: isTrim ? TRIM : WRITE_ZEROES, flags: fua ? FUA : 0, offset, length, payload: undefined };
    this.#submit(request, `${lba} ${blocks} = 0 (${operation.id})`, (data) => {
      this.#busy.fill(0, lba, lba + blocks);
      coverage.add(isTrim ? "trim answered" : "zeroes answered");
      if (shard !== undefined) coverage.add("a whole shard of the map cleared");
      if (data === undefined) this.#oracle.abandoned(operation);
      else this.#oracle.answered(this.line, operation, fua);
    });
  }

  #read({ lba, blocks }: Range): void {
    const read = this.#oracle.beginRead(this.line, lba, blocks);
    const offset = this.#world.layout.offsetOf(lba);
    const request = { type: READ, flags: 0, offset, length: blocks * BLOCK, payload: undefined };
    this.#submit(request, `${lba} ${blocks}`, (data) => {
      this.#world.coverage.add("read answered");
      this.#oracle.endRead(this.line, read, data === undefined ? undefined : decodeVersions(data, lba));
    });
  }

  /** Write, flush, trim of the same blocks, read: what stands in the segment, the overlay and the map must agree. */
  #rewrite(): void {
    const range = this.#range(4);
    if (this.#isBusy(range)) return;
    this.flush();
    this.#zero(range, false);
    this.#read(range);
  }

  #submit(request: DeviceRequest, text: string, done: (data: Buffer | undefined) => void): void {
    const { type, flags } = request;
    const world = this.#world;
    this.inFlight += 1;
    world.trace.add(`${this.node.name} request ${type} ${flags} ${text}`);
    const finish = (errno: number, data: Buffer | undefined): void => {
      this.inFlight -= 1;
      world.trace.add(`${this.node.name} answer ${type} ${text} ${errno}`);
      if (errno !== 0) this.#error(errno);
      done(errno === 0 ? (data ?? Buffer.alloc(0)) : undefined);
      if (this.inFlight === 0) for (const idle of this.#idle.splice(0)) idle();
    };
    this.device.submit({ ...request, done: (errno, data) => world.guard(() => finish(errno, data)) });
  }

  #error(errno: number): void {
    this.#world.coverage.add("i/o error seen by a user");
    if (!this.failed) this.#world.expectIoError(this, errno);
    this.failed = true;
  }
}
