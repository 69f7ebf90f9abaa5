/**
 * Owners that are frozen (SIGSTOP of the server process) for longer than another node needs to take over, and thawed:
 * two real server processes on a real S3 server, NBD clients over sockets, any number of volumes.
 *
 * What must hold for each owner: its successor finds every flush that was acknowledged; no flush that it is asked for
 * after it was thawed is acknowledged; one that was under way when it was frozen may be, if its successor found the data;
 * nothing else of it is ever seen.
 */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { openStore } from "../../src/store/open-store.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { DriverProcess } from "../e2e/process.ts";
import { type S3Server, startS3Server } from "../suites/s3-server.ts";
import { NbdClient } from "./nbd-client.ts";

const BLOCK = 4096;
const BLOCKS = 16;
const MIB = 1024 * 1024;

export interface FrozenTotals {
  owners: number;
  /** Acknowledged before they were frozen. */
  flushes: number;
  /** Under way when they were frozen, in the store by then, and acknowledged when they were thawed. */
  flushesUnderWay: number;
  /** Asked for after they were thawed, and refused. */
  refusedFlushes: number;
  longestFreezeMs: number;
}

/** Freezes `owners` owners, `together` of them at a time. Rejects at the first thing that must not be. */
export async function freezeOwners(options: { owners: number; together: number; seed: number }): Promise<FrozenTotals> {
  const laboratory = await Laboratory.start(options.seed);
  try {
    for (let done = 0; done < options.owners; done += options.together) {
      await laboratory.round(Math.min(options.together, options.owners - done));
    }
    return laboratory.totals;
  } finally {
    await laboratory.stop();
  }
}

class Laboratory {
  readonly totals: FrozenTotals = {
    owners: 0,
    flushes: 0,
    flushesUnderWay: 0,
    refusedFlushes: 0,
    longestFreezeMs: 0,
  };
  readonly #random: SeededRandom;
  readonly #directory: string;
  readonly #s3: S3Server;
  readonly #nodes: readonly DriverProcess[];

  static async start(seed: number): Promise<Laboratory> {
    const s3 = await startS3Server();
    const directory = await mkdtemp(join(tmpdir(), "s3block-frozen-"));
    const laboratory = new Laboratory(seed, directory, s3);
    try {
      await Promise.all(laboratory.#nodes.map((node) => node.start()));
    } catch (error) {
      await laboratory.stop();
      throw error;
    }
    return laboratory;
  }

  private constructor(seed: number, directory: string, s3: S3Server) {
    this.#random = new SeededRandom(seed);
    this.#directory = directory;
    this.#s3 = s3;
    const keys = { AWS_ACCESS_KEY_ID: s3.accessKeyId, AWS_SECRET_ACCESS_KEY: s3.secretAccessKey };
    this.#nodes = ["a", "b"].map((name) => new DriverProcess("server", this.#flags(name), keys));
  }

  /** A frozen process dies as well of SIGKILL. */
  async stop(): Promise<void> {
    await Promise.all(this.#nodes.map((node) => node.stop("SIGKILL")));
    await this.#s3.stop();
    await rm(this.#directory, { recursive: true, force: true });
  }

  /** New volumes, owned by node a, frozen in the midst of their writes, taken over by node b. */
  async round(count: number): Promise<void> {
    const names = await this.#createVolumes(count);
    const owners = await Promise.all(
      names.map(async (name) => new Owner(await NbdClient.open(this.#socket("a"), name), this.#random)),
    );
    await Promise.all(owners.map((owner) => owner.begun()));
    await sleep(this.#random.below(200));
    this.#signal("SIGSTOP");
    for (const owner of owners) owner.isFrozen = true;
    const frozenMs = systemClock.monotonicMs();
    try {
      const successors = await Promise.all(
        names.map(async (name) => new Successor(await NbdClient.open(this.#socket("b"), name))),
      );
      await Promise.all(successors.map((successor, index) => successor.takeOver(owners[index])));
      for (const owner of owners) owner.isThawed = true;
      this.#signal("SIGCONT");
      this.totals.longestFreezeMs = Math.max(this.totals.longestFreezeMs, systemClock.monotonicMs() - frozenMs);
      await Promise.all(owners.map((owner) => owner.ended()));
      for (const [index, successor] of successors.entries()) {
        successor.judge(owners[index]);
        await successor.mustSeeItsOwn();
      }
      for (const { client } of [...owners, ...successors]) client.close();
      await this.#mustReadAnywhere(names, successors);
    } finally {
      this.#signal("SIGCONT");
      for (const owner of owners) owner.client.close();
    }
    this.#count(owners);
  }

  #count(owners: readonly Owner[]): void {
    this.totals.owners += owners.length;
    for (const owner of owners) {
      this.totals.flushes += owner.flushes;
      this.totals.flushesUnderWay += owner.flushesUnderWay.length;
      this.totals.refusedFlushes += owner.refusedFlushes;
    }
  }

  /** The store itself, through node a, which once lost it: it takes the volume again. */
  async #mustReadAnywhere(names: readonly string[], successors: readonly Successor[]): Promise<void> {
    for (const [index, name] of names.entries()) {
      const client = await this.#openAgain(name);
      const found = await readVersions(client);
      assert.deepEqual(found, successors[index].written, `${name} elsewhere`);
      client.close();
    }
  }

  /** The export that failed goes some moments after its last client. */
  async #openAgain(name: string): Promise<NbdClient> {
    for (;;) {
      const client = await NbdClient.open(this.#socket("a"), name);
      const { answer } = await client.read(0, BLOCK);
      if (answer === 0) return client;
      client.close();
      await sleep(50);
    }
  }

  async #createVolumes(count: number): Promise<string[]> {
    const { accessKeyId, secretAccessKey, endpoint } = this.#s3;
    const credentials = { kind: "static" as const, accessKeyId, secretAccessKey };
    const parts = { clock: systemClock, random: this.#random, log: nullLog };
    const store = openStore({ url: this.#url, endpoints: [endpoint], credentials }, parts);
    const catalog = new Catalog({ store, ...parts, fenceForDeletion: () => Promise.resolve() });
    const names = Array.from({ length: count }, (_, index) => `owner-${this.totals.owners + index}`);
    const shape = { sizeBytes: 16 * MIB, blockSizeBytes: BLOCK, durability: "s3" as const, parameters: {} };
    await Promise.all(names.map((name) => catalog.create({ id: mustVolumeId(name), name, ...shape })));
    await store.close();
    for (const name of ["a", "b"]) await mkdir(join(this.#directory, name), { recursive: true });
    return names;
  }

  #signal(signal: "SIGSTOP" | "SIGCONT"): void {
    const { pid } = this.#nodes[0];
    if (pid !== undefined && this.#nodes[0].isRunning) process.kill(pid, signal);
  }

  #socket(node: string): string {
    return join(this.#directory, `${node}.sock`);
  }

  get #url(): string {
    return `s3://${this.#s3.bucket}/frozen`;
  }

  #flags(node: string): string[] {
    const path = (...names: string[]): string => join(this.#directory, node, ...names);
    return [
      `--store=${this.#url}`,
      `--s3-endpoint=${this.#s3.endpoint}`,
      `--state-dir=${path("state")}`,
      `--run-dir=${path("run")}`,
      `--control-socket=${path("control.sock")}`,
      `--listen=unix:${this.#socket(node)}`,
      "--cache-size=0",
      "--journal-size=128MiB",
      "--threads=1",
      "--export-idle-ms=20",
      `--node-id=node-${node}`,
    ];
  }
}

interface Flush {
  block: number;
  version: number;
}

/** A client of the node that will be frozen: writes a block and flushes, without a pause, until it is refused. */
class Owner {
  readonly client: NbdClient;
  isFrozen = false;
  isThawed = false;
  flushes = 0;
  refusedFlushes = 0;
  /** Asked for before the freeze and acknowledged after it. */
  readonly flushesUnderWay: Flush[] = [];
  /** By block: the newest version that was flushed before the freeze, and the newest that was written at all. */
  readonly flushed: number[] = Array.from({ length: BLOCKS }, () => 0);
  readonly written: number[] = Array.from({ length: BLOCKS }, () => 0);
  /** Flushes of which it must not be told that they got through. */
  readonly acknowledgedAfterThaw: Flush[] = [];
  readonly #random: SeededRandom;
  readonly #work: Promise<void>;
  #onBegun: () => void = () => undefined;
  readonly #begun: Promise<void>;

  constructor(client: NbdClient, random: SeededRandom) {
    this.client = client;
    this.#random = random;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#begun = promise;
    this.#onBegun = resolve;
    this.#work = this.#write();
  }

  /** Resolves once some flushes have been acknowledged. */
  async begun(): Promise<void> {
    await Promise.race([this.#begun, this.#work]);
    assert.ok(this.flushes > 0, "an owner was refused before it was frozen");
  }

  ended(): Promise<void> {
    return this.#work;
  }

  async #write(): Promise<void> {
    // After the first refusal one more is asked for: a fenced owner does not come back to life.
    for (let version = 1; this.refusedFlushes < 2 && this.acknowledgedAfterThaw.length === 0; version += 1) {
      const flush = { block: this.#random.below(BLOCKS), version };
      const wasThawed = this.isThawed;
      this.written[flush.block] = version;
      await this.client.write(flush.block * BLOCK, encode(version));
      const askedThawed = this.isThawed;
      const answer = await this.client.flush();
      if (answer !== 0) {
        if (askedThawed) this.refusedFlushes += 1;
      } else if (askedThawed && wasThawed) this.acknowledgedAfterThaw.push(flush);
      else if (this.isFrozen) this.flushesUnderWay.push(flush);
      else this.#acknowledge(flush);
    }
  }

  #acknowledge({ block, version }: Flush): void {
    this.flushes += 1;
    this.flushed[block] = version;
    if (this.flushes === 3) this.#onBegun();
  }
}

/** A client of the node that takes over. */
class Successor {
  readonly client: NbdClient;
  found: number[] = [];
  written: number[] = [];

  constructor(client: NbdClient) {
    this.client = client;
  }

  /** Finds what was flushed, and writes over half of it. */
  async takeOver(owner: Owner): Promise<void> {
    this.found = await readVersions(this.client);
    for (const [block, version] of this.found.entries()) {
      assert.ok(version >= owner.flushed[block], `block ${block}: ${version} instead of ${owner.flushed[block]}`);
      assert.ok(version <= owner.written[block], `block ${block} was never written as ${version}`);
    }
    this.written = this.found.map((version, block) => (block % 2 === 0 ? version + 1_000_000 : version));
    for (const [block, version] of this.written.entries()) {
      if (block % 2 === 0) assert.equal(await this.client.write(block * BLOCK, encode(version)), 0);
    }
    assert.equal(await this.client.flush(), 0);
  }

  judge(owner: Owner): void {
    assert.deepEqual(owner.acknowledgedAfterThaw, [], "a flush was acknowledged to a former owner");
    for (const { block, version } of owner.flushesUnderWay) {
      assert.ok(this.found[block] >= version, `a flush was acknowledged that the successor did not find`);
    }
    assert.ok(owner.refusedFlushes >= 2, "the former owner was asked");
  }

  async mustSeeItsOwn(): Promise<void> {
    assert.deepEqual(await readVersions(this.client), this.written);
  }
}

async function readVersions(client: NbdClient): Promise<number[]> {
  const { answer, payload } = await client.read(0, BLOCKS * BLOCK);
  assert.equal(answer, 0, "a read is answered");
  return Array.from({ length: BLOCKS }, (_, block) => payload.readUInt32LE(block * BLOCK));
}

function encode(version: number): Buffer {
  const bytes = Buffer.alloc(BLOCK, version & 0xff);
  bytes.writeUInt32LE(version, 0);
  return bytes;
}
