/**
 * A real server process on a real S3 server that goes away or hangs for minutes, or of whose answers half are errors, in
 * real time, while clients write and flush over sockets. What is asked of it: no error, everything reads as it was written,
 * and how soon all is as before.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
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
import { startUnreliableProxy } from "./unreliable-proxy.ts";

const BLOCK = 16 * 1024;
const BLOCKS = 1024;
const VOLUMES = 2;
const WRITE_PAUSE_MS = 60;
const FLUSH_PAUSE_MS = 1000;
const CALM_MS = 20_000;

/** The server is stopped; half of its answers are errors or cut off; it takes requests and never answers them. */
export type Trouble = "away" | "errors" | "hung";

export interface RealOutageResult {
  trouble: Trouble;
  minutes: number;
  writes: number;
  flushes: number;
  /** Writes and flushes that were answered with an error. */
  errors: number;
  longestWriteMs: number;
  /** From the end of the trouble to the answer of every flush that waited then. */
  flushedAfterMs: number;
  /** From the end of the trouble until nothing was dirty any more, under load. */
  drainedAfterMs: number;
  /** Requests of the server to the store during the trouble, and how many of them failed. */
  requests: number;
  failedRequests: number;
  journalLines: readonly string[];
}

/** Runs for `minutes` of trouble and some calm around it. */
export async function realOutage(options: {
  trouble: Trouble;
  minutes: number;
  say: (line: string) => void;
}): Promise<RealOutageResult> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-outage-"));
  const random = new SeededRandom(1);
  let isTroubled = false;
  const s3Options = { root: join(directory, "s3") };
  let s3 = await startS3Server(s3Options);
  const proxy = await startUnreliableProxy({
    port: s3.port,
    fateOf: () => {
      if (!isTroubled) return "pass";
      if (options.trouble === "hung") return "hang";
      return (["pass", "pass", "refuse", "cut"] as const)[random.below(4)];
    },
  });
  const endpoint = options.trouble === "away" ? s3.endpoint : proxy.endpoint;
  const server = new DriverProcess("server", flagsOf(directory, s3, endpoint), {
    AWS_ACCESS_KEY_ID: s3.accessKeyId,
    AWS_SECRET_ACCESS_KEY: s3.secretAccessKey,
  });
  try {
    const names = await createVolumes(s3, random);
    await server.start();
    const { address } = await server.logged("metrics are served");
    const metrics = new Metrics(String(address));
    const socketPath = join(directory, "nbd.sock");
    const writers = await Promise.all(
      names.map(async (name) => new Writer(await NbdClient.open(socketPath, name), random)),
    );
    const loads = writers.map((writer) => writer.run());
    await sleep(CALM_MS);
    const before = await metrics.storeRequests();
    if (options.trouble === "away") await s3.stop();
    isTroubled = true;
    for (let minute = 0; minute < options.minutes; minute += 1) {
      options.say(`minute ${minute}: ${await metrics.summary()}`);
      await sleep(60_000);
    }
    const after = await metrics.storeRequests();
    if (options.trouble === "away") s3 = await startS3Server({ ...s3Options, port: s3.port });
    isTroubled = false;
    const backMs = performance.now();
    await Promise.all(writers.map((writer) => writer.flushUnderWay));
    const flushedAfterMs = performance.now() - backMs;
    while ((await metrics.sum("s3block_volume_behind_seconds")) > 6 || (await metrics.fullest()) > 0.5)
      await sleep(100);
    const drainedAfterMs = performance.now() - backMs;
    await sleep(CALM_MS);
    for (const writer of writers) writer.stop();
    await Promise.all(loads);
    for (const writer of writers) await writer.check();
    return {
      trouble: options.trouble,
      minutes: options.minutes,
      writes: sum(writers.map(({ writes }) => writes)),
      flushes: sum(writers.map(({ flushes }) => flushes)),
      errors: sum(writers.map(({ errors }) => errors)),
      longestWriteMs: Math.round(Math.max(...writers.map(({ longestWriteMs }) => longestWriteMs))),
      flushedAfterMs: Math.round(flushedAfterMs),
      drainedAfterMs: Math.round(drainedAfterMs),
      requests: after.all - before.all,
      failedRequests: after.failed - before.failed,
      journalLines: server.lines
        .filter(({ message }) => message.startsWith("the journal") || message.startsWith("the store"))
        .map(({ message, fullInSeconds, awayMs }) => `${message} ${JSON.stringify({ fullInSeconds, awayMs })}`),
    };
  } finally {
    await server.stop("SIGKILL");
    await proxy.stop();
    await s3.stop();
    await rm(directory, { recursive: true, force: true });
  }
}

function flagsOf(directory: string, s3: S3Server, endpoint: string): string[] {
  return [
    `--store=s3://${s3.bucket}/outage`,
    `--s3-endpoint=${endpoint}`,
    `--state-dir=${join(directory, "state")}`,
    `--run-dir=${join(directory, "run")}`,
    `--control-socket=${join(directory, "control.sock")}`,
    `--listen=unix:${join(directory, "nbd.sock")}`,
    "--cache-size=0",
    "--journal-size=128MiB",
    "--threads=1",
    "--metrics-address=127.0.0.1:0",
    "--node-id=node-a",
  ];
}

async function createVolumes(s3: S3Server, random: SeededRandom): Promise<string[]> {
  const { accessKeyId, secretAccessKey, endpoint, bucket } = s3;
  const credentials = { kind: "static" as const, accessKeyId, secretAccessKey };
  const parts = { clock: systemClock, random, log: nullLog };
  const store = openStore({ url: `s3://${bucket}/outage`, endpoints: [endpoint], credentials }, parts);
  const catalog = new Catalog({ store, ...parts, fenceForDeletion: () => Promise.resolve() });
  const names = Array.from({ length: VOLUMES }, (_, index) => `outage-${index}`);
  const shape = { sizeBytes: BLOCKS * BLOCK, blockSizeBytes: 4096, durability: "s3" as const, parameters: {} };
  for (const name of names) await catalog.create({ id: mustVolumeId(name), name, ...shape });
  await store.close();
  return names;
}

/** One client: a write each 60 ms, and a flush each second, of which one at a time is under way. */
class Writer {
  writes = 0;
  flushes = 0;
  errors = 0;
  longestWriteMs = 0;
  flushUnderWay: Promise<void> = Promise.resolve();
  readonly #client: NbdClient;
  readonly #random: SeededRandom;
  readonly #image = new Uint32Array(BLOCKS);
  #isStopping = false;
  #isFlushing = false;

  constructor(client: NbdClient, random: SeededRandom) {
    this.#client = client;
    this.#random = random;
  }

  async run(): Promise<void> {
    let flushedMs = performance.now();
    while (!this.#isStopping) {
      await this.#write();
      if (!this.#isFlushing && performance.now() - flushedMs > FLUSH_PAUSE_MS) {
        flushedMs = performance.now();
        this.flushUnderWay = this.#flush();
      }
      await sleep(WRITE_PAUSE_MS);
    }
    await this.flushUnderWay;
  }

  stop(): void {
    this.#isStopping = true;
  }

  async check(): Promise<void> {
    for (let block = 0; block < BLOCKS; block += 1) {
      const { answer, payload } = await this.#client.read(block * BLOCK, BLOCK);
      assert.equal(answer, 0);
      assert.ok(payload.equals(contentOf(this.#image[block])), `block ${block} reads as it was written`);
    }
    this.#client.close();
  }

  async #write(): Promise<void> {
    const block = this.#random.below(BLOCKS);
    this.writes += 1;
    this.#image[block] = this.writes;
    const beganMs = performance.now();
    if ((await this.#client.write(block * BLOCK, contentOf(this.writes))) !== 0) this.errors += 1;
    this.longestWriteMs = Math.max(this.longestWriteMs, performance.now() - beganMs);
  }

  async #flush(): Promise<void> {
    this.#isFlushing = true;
    if ((await this.#client.flush()) !== 0) this.errors += 1;
    this.flushes += 1;
    this.#isFlushing = false;
  }
}

function contentOf(version: number): Buffer {
  const bytes = Buffer.alloc(BLOCK, version & 0xff);
  bytes.writeUInt32LE(version, 0);
  return version === 0 ? Buffer.alloc(BLOCK) : bytes;
}

/** What the server's /metrics say. */
class Metrics {
  readonly #address: string;

  constructor(address: string) {
    this.#address = address;
  }

  async storeRequests(): Promise<{ all: number; failed: number }> {
    const samples = await this.#samples("s3block_store_requests_total");
    const failed = samples.filter(({ labels }) => !labels.includes('outcome="ok"'));
    return { all: sum(samples.map(({ value }) => value)), failed: sum(failed.map(({ value }) => value)) };
  }

  async sum(name: string): Promise<number> {
    return sum((await this.#samples(name)).map(({ value }) => value));
  }

  /** Share of its journal that the fullest volume uses. */
  async fullest(): Promise<number> {
    const used = await this.#samples("s3block_volume_journal_used_bytes");
    const limit = await this.#samples("s3block_volume_journal_limit_bytes");
    return Math.max(...used.map(({ value }, index) => value / limit[index].value));
  }

  async summary(): Promise<string> {
    const full = (await this.#samples("s3block_volume_journal_full_seconds")).map(({ value }) => Math.round(value));
    const { all, failed } = await this.storeRequests();
    const percent = Math.round((await this.fullest()) * 100);
    return `journal ${percent} % full, full in ${full.join(" and ")} s, ${all} requests, ${failed} of them failed`;
  }

  async #samples(name: string): Promise<{ labels: string; value: number }[]> {
    const text = await (await fetch(`http://${this.#address}/metrics`)).text();
    const lines = text.split("\n").filter((line) => line.startsWith(`${name}{`));
    return lines.map((line) => {
      const [labels, value] = line.slice(name.length).split("} ");
      return { labels, value: value === "+Inf" ? Infinity : Number(value) };
    });
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
