/**
 * One machine of the simulated cluster: its disk, its kernel, and the server that a supervisor starts again whenever
 * it has died. The state directory survives a reboot, run directory and kernel devices do not.
 */
import { OperationError } from "../../src/base/errors.ts";
import type { Log } from "../../src/base/log.ts";
import { MemoryDisk, type MemoryDiskCall } from "../../src/base/memory-disk.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { SimKernel } from "./kernel.ts";
import type { JournalRisk } from "./oracle.ts";
import { SimServer } from "./server.ts";
import { SimProcess } from "./sim-process.ts";
import type { HostedVolume } from "../../src/attachment/volume-worker.ts";
import type { OpenRequest } from "../../src/attachment/volume-host.ts";
import type { Clock } from "../../src/base/clock.ts";
import type { Coverage } from "./coverage.ts";
import type { StoreService } from "./sim-store.ts";
import type { Swarm } from "./swarm.ts";
import type { Trace } from "./trace.ts";

/** What a node needs of its world. */
export interface NodeWorld {
  readonly clock: Clock;
  readonly swarm: Swarm;
  readonly log: Log;
  readonly coverage: Coverage;
  readonly trace: Trace;
  readonly service: StoreService;
  readonly coldDisks: boolean;
  opened(node: SimNode, request: OpenRequest, volume: HostedVolume, server: SimServer): Promise<void>;
  closed(node: SimNode, request: OpenRequest, volume: HostedVolume): void;
  nodeStopped(node: SimNode): void;
  expectDiskError(node: SimNode, error: unknown, what: string): void;
}

/** Chances that a call of the disk fails, by what it does. */
export interface DiskFaults {
  read: number;
  write: number;
  sync: number;
  /** Longest time that an asynchronous call takes. */
  delayMs: number;
}

const riskOrder: readonly JournalRisk[] = ["none", "unsynced", "all"];

export class SimNode {
  readonly name: string;
  readonly world: NodeWorld;
  readonly random: SeededRandom;
  kernel: SimKernel;
  state = new MemoryDisk();
  run = new MemoryDisk();
  server: SimServer | undefined;
  up = true;
  readonly faults: DiskFaults = { read: 0, write: 0, sync: 0, delayMs: 0.5 };
  /** What may have become of the journal since this node opened the volume last. */
  risk: JournalRisk = "none";
  /** And since it has begun to: what it reads of the journal may be from before that. */
  #riskSince: JournalRisk = "none";
  /** Errors that the disk has given, or rot that it has, ever: an excuse for errors of its volumes. */
  diskFailures = 0;
  /** The process dies in the midst of the disk operation that brings this to zero. */
  #killAfterWrites = Infinity;
  #processes = 0;
  readonly #skewMs: number;

  constructor(world: NodeWorld, name: string, random: SeededRandom) {
    this.world = world;
    this.name = name;
    this.random = random;
    this.kernel = this.#bootKernel();
    const skewed = world.swarm.enabled.has("skew");
    this.#skewMs = skewed ? Math.floor((random.fraction() - 0.5) * 2 * 86_400_000) : 0;
    if (skewed) world.coverage.add("clock off by hours");
  }

  /** Starts the server where none runs. */
  boot(): void {
    if (!this.up || (this.server !== undefined && !this.server.process.dead)) return;
    const { world } = this;
    this.#processes += 1;
    const process = new SimProcess(`${this.name}.${this.#processes}`);
    this.state = this.state.reopen();
    this.run = this.run.reopen();
    for (const disk of [this.state, this.run]) {
      disk.setDelay((call) => this.#delay(process, call));
      disk.setFault((call) => this.#fault(process, call));
      if (world.coldDisks) disk.setInMemory((call) => this.#isInMemory(call));
    }
    const server = new SimServer(process, {
      nodeId: this.name,
      clock: world.clock,
      skewMs: this.#skewMs,
      random: this.random,
      swarm: world.swarm,
      log: world.log,
      service: world.service,
      kernel: this.kernel,
      state: this.state,
      run: this.run,
      opening: () => (this.#riskSince = "none"),
      opened: (request, volume, by) => world.opened(this, request, volume, by),
      closed: (request, volume) => world.closed(this, request, volume),
      refused: () => world.coverage.add("damage found under a waiting device"),
    });
    this.server = server;
    world.trace.add(`${process.name} starts`);
    server.start().then(
      () => world.trace.add(`${process.name} is ready`),
      (error: unknown) => {
        if (process.dead) return;
        world.expectDiskError(this, error, "the server did not start");
        this.killProcess("start failed");
      },
    );
  }

  /** The process is gone at once; its supervisor starts another one. */
  killProcess(reason: string): void {
    const server = this.server;
    if (server === undefined || server.process.dead) return;
    this.world.trace.add(`${server.process.name} dies: ${reason}`);
    server.process.kill();
    this.#killAfterWrites = Infinity;
    this.#bootLater(this.random.below(4) === 0 ? 3000 : 50);
  }

  /** The process will die in the midst of one of its next writes to the disk. */
  killInWrite(): void {
    this.#killAfterWrites = 1 + this.random.below(6);
  }

  /** The machine loses power: unsynced data is torn, processes and kernel are gone. */
  losePower(): void {
    if (!this.up) return;
    this.world.trace.add(`${this.name} loses power`);
    this.#stop();
    this.state = this.state.crash(this.random);
    this.raiseRisk("unsynced");
    this.#bootLater(500 + this.random.below(5000));
  }

  /** The machine and its disk are gone; a new one takes its name. */
  loseDisk(): void {
    if (!this.up) return;
    this.world.trace.add(`${this.name} is lost with its disk`);
    this.#stop();
    this.state = new MemoryDisk();
    this.raiseRisk("all");
    this.#bootLater(500 + this.random.below(5000));
  }

  raiseRisk(risk: JournalRisk): void {
    if (riskOrder.indexOf(risk) > riskOrder.indexOf(this.risk)) this.risk = risk;
    if (riskOrder.indexOf(risk) > riskOrder.indexOf(this.#riskSince)) this.#riskSince = risk;
  }

  /** It is decided what an opened volume holds. */
  settleRisk(): void {
    this.risk = this.#riskSince;
  }

  /** Freezes the server's process, and thaws it after up to five minutes. */
  freezeProcess(): boolean {
    const process = this.server?.process;
    if (process === undefined || process.dead || process.frozen) return false;
    const { coverage, trace, clock } = this.world;
    coverage.add("process frozen");
    trace.add(`${process.name} freezes`);
    process.freeze();
    clock.after(Math.exp(this.random.fraction() * Math.log(300_000)), () => {
      if (process.dead || !process.frozen) return;
      coverage.add("process thawed");
      trace.add(`${process.name} thaws`);
      process.thaw();
    });
    return true;
  }

  /** No more than `leftBytes` can be allocated. */
  fillDisk(leftBytes: number): void {
    const chunkBytes = 65_536;
    let used = 0;
    for (const path of this.state.paths()) used += Math.ceil(this.state.sizeOf(path) / chunkBytes) * chunkBytes;
    this.state.setCapacity(used + leftBytes);
  }

  emptyDisk(): void {
    this.state.setCapacity(Number.POSITIVE_INFINITY);
  }

  /** No faults any more: for the end of a run. */
  heal(): void {
    this.faults.delayMs = 0.5;
    this.faults.read = 0;
    this.faults.write = 0;
    this.faults.sync = 0;
    this.emptyDisk();
    this.#killAfterWrites = Infinity;
    if (this.server?.process.frozen === true) this.server.process.thaw();
  }

  #stop(): void {
    this.up = false;
    this.server?.process.kill();
    this.server = undefined;
    this.world.nodeStopped(this);
    this.kernel.vanish();
    this.run = new MemoryDisk();
    this.kernel = this.#bootKernel();
  }

  #bootKernel(): SimKernel {
    return new SimKernel({ clock: this.world.clock, random: this.random, coverage: this.world.coverage });
  }

  #bootLater(mostMs: number): void {
    this.world.clock.after(this.random.fraction() * mostMs, () => {
      this.up = true;
      this.boot();
    });
  }

  /** Each asynchronous call takes a moment, in which the process may die. */
  #delay(process: SimProcess, call: MemoryDiskCall): Promise<void> {
    const slow = call.operation === "sync" || call.operation === "sync-directory" ? 4 : 1;
    const delayMs = this.random.fraction() * this.faults.delayMs * slow;
    return new Promise((resolve) => {
      this.world.clock.after(delayMs, () => process.gate(resolve));
    });
  }

  #isInMemory(call: MemoryDiskCall): boolean {
    if (Math.floor(call.position / 4096) % 4 !== 0) return true;
    this.world.coverage.add("a page has left memory");
    return false;
  }

  #fault(process: SimProcess, call: MemoryDiskCall): void {
    const { operation } = call;
    if (process.dead) throw new OperationError("unavailable", "simulated: the process is dead");
    if (operation === "write" && --this.#killAfterWrites <= 0) {
      this.world.coverage.add("process killed in a write");
      this.killProcess("in a write");
      throw new OperationError("unavailable", "simulated: the process is dead");
    }
    const chance = this.#chance(operation);
    if (chance === 0 || this.random.fraction() >= chance) return;
    this.diskFailures += 1;
    this.world.coverage.add(`disk error: ${operation}`);
    throw new OperationError("unavailable", `simulated: the disk fails ${operation} of ${call.path}`);
  }

  #chance(operation: MemoryDiskCall["operation"]): number {
    if (operation === "read") return this.faults.read;
    if (operation === "sync" || operation === "sync-directory") return this.faults.sync;
    return operation === "write" ? this.faults.write : 0;
  }
}
