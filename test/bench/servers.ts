/**
 * The processes that the benchmark compares: the program's own server with its default settings, as a user would start
 * it, and nbdkit's file plugin; both on the same disk, each with a unix socket. stop() ends them and removes nothing.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { access, mkdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { s3block, ServerProcess } from "../cli/program.ts";
import type { S3Server } from "../suites/s3-server.ts";
import { type Load, runFio, type Target } from "./fio.ts";

const oneFlush: Load = { name: "flush", pattern: "randwrite", blockBytes: 4096, depth: 1, flushEvery: 1 };
const startTimeoutMs = 10_000;
/** Every scrape of the metrics leaves garbage in the server that is measured. */
const pollMs = 500;
const drainTimeoutMs = 300_000;

export interface StoreRequests {
  byKind: Record<string, number>;
  total: number;
  putBytes: number;
}

/** A directory of its own, a store, and a server with the program's defaults on them. */
export class BenchServer {
  readonly directory: string;
  readonly #process: ServerProcess;
  readonly #storeFlags: readonly string[];
  readonly #metricsUrl: string;

  private constructor(directory: string, process: ServerProcess, storeFlags: readonly string[], metricsUrl: string) {
    this.directory = directory;
    this.#process = process;
    this.#storeFlags = storeFlags;
    this.#metricsUrl = metricsUrl;
  }

  /** With `s3` its bucket is the store, else a directory inside `directory`. */
  static async start(directory: string, s3?: S3Server, flags: readonly string[] = []): Promise<BenchServer> {
    await mkdir(directory, { recursive: true });
    const storeFlags = s3 === undefined ? [`--store=file://${join(directory, "store")}`] : await s3Flags(directory, s3);
    const process = new ServerProcess([
      ...storeFlags,
      `--state-dir=${join(directory, "state")}`,
      `--run-dir=${join(directory, "run")}`,
      `--control-socket=${join(directory, "control.sock")}`,
      `--listen=unix:${join(directory, "nbd.sock")}`,
      "--metrics-address=127.0.0.1:0",
      "--export-idle-ms=3600000",
      "--node-id=bench",
      ...flags,
    ]);
    await process.logged("the server is ready");
    const { address } = await process.logged("metrics are served");
    return new BenchServer(directory, process, storeFlags, `http://${String(address)}/metrics`);
  }

  get pid(): number {
    return this.#process.pid;
  }

  uri(volume: string): string {
    return `nbd+unix:///${volume}?socket=${join(this.directory, "nbd.sock")}`;
  }

  async create(volume: string, size: string, durability: "s3" | "local"): Promise<void> {
    const { code, stderr } = await s3block([
      "volume",
      "create",
      volume,
      size,
      `--durability=${durability}`,
      ...this.#storeFlags,
    ]);
    if (code !== 0) throw new Error(`volume create failed: ${stderr}`);
  }

  target(volume: string, sizeBytes: number): Target {
    return { uri: this.uri(volume), pid: this.pid, sizeBytes };
  }

  /** Has everything uploaded that a volume of durability "s3" was given, and waits until its journal is free again. */
  async drain(target: Target): Promise<void> {
    await runFio(oneFlush, target, { bytes: oneFlush.blockBytes });
    await sleep(pollMs / 5);
    await this.drained();
  }

  /** Waits until the store holds everything that the volumes were given, and the journals are free again. */
  async drained(): Promise<void> {
    for (let waitedMs = 0; waitedMs < drainTimeoutMs; waitedMs += pollMs) {
      const text = await this.#metrics();
      if (sum(text, "s3block_volume_journal_used_bytes") === 0) return;
      await sleep(pollMs);
    }
    throw new Error("the server did not upload what it was given");
  }

  /** Requests that the server has sent to its store since it started, and the bytes that it has put. */
  async storeRequests(): Promise<StoreRequests> {
    const text = await this.#metrics();
    const byKind: Record<string, number> = {};
    for (const [, kind, value] of text.matchAll(/^s3block_store_requests_total\{kind="([^"]+)"[^}]*\} (\S+)$/gm)) {
      byKind[kind] = (byKind[kind] ?? 0) + Number(value);
    }
    const total = Object.values(byKind).reduce((left, right) => left + right, 0);
    return { byKind, total, putBytes: sum(text, "s3block_store_bytes_total", 'kind="put"') };
  }

  /** Share of the block cache's reads since the start that it could answer: hits and misses. */
  async cacheReads(): Promise<{ hits: number; misses: number }> {
    const text = await this.#metrics();
    const reads = (result: string): number => sum(text, "s3block_cache_reads_total", `result="${result}"`);
    return { hits: reads("memory") + reads("disk"), misses: reads("miss") };
  }

  /** Resident memory now and the most there ever was, in MiB. */
  async memory(): Promise<{ residentMib: number; peakMib: number }> {
    const text = await readFile(`/proc/${this.pid}/status`, "utf8");
    const field = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text)?.[1]) / 1024;
    return { residentMib: field("VmRSS"), peakMib: field("VmHWM") };
  }

  async stop(): Promise<void> {
    await this.#process.stop("SIGTERM");
  }

  async #metrics(): Promise<string> {
    return await (await fetch(this.#metricsUrl)).text();
  }
}

/** nbdkit's file plugin on a sparse file in `directory`. */
export async function startNbdkit(
  directory: string,
  sizeBytes: number,
): Promise<{ target: Target; stop(): Promise<void> }> {
  await mkdir(directory, { recursive: true });
  const path = join(directory, "nbdkit.raw");
  const socket = join(directory, "nbdkit.sock");
  await writeFile(path, "");
  await truncate(path, sizeBytes);
  const child = spawn("nbdkit", ["--foreground", "--unix", socket, "file", path], { stdio: "ignore" });
  const exited = once(child, "exit");
  for (let waitedMs = 0; ; waitedMs += 20) {
    const isThere = await access(socket).then(
      () => true,
      () => false,
    );
    if (isThere) break;
    if (waitedMs > startTimeoutMs || child.exitCode !== null) throw new Error("nbdkit did not start");
    await sleep(20);
  }
  const stop = async (): Promise<void> => {
    child.kill("SIGTERM");
    await exited;
  };
  return { target: { uri: `nbd+unix:///?socket=${socket}`, pid: child.pid ?? -1, sizeBytes }, stop };
}

async function s3Flags(directory: string, s3: S3Server): Promise<string[]> {
  const file = join(directory, "credentials");
  const keys = [`aws_access_key_id = ${s3.accessKeyId}`, `aws_secret_access_key = ${s3.secretAccessKey}`];
  await writeFile(file, `[default]\n${keys.join("\n")}\n`, { mode: 0o600 });
  return [`--store=s3://${s3.bucket}/bench`, `--s3-endpoint=${s3.endpoint}`, `--s3-credentials-file=${file}`];
}

/** The sum of a metric's series, of those alone that have `label` where one is given. */
function sum(text: string, name: string, label = ""): number {
  let total = 0;
  for (const line of text.split("\n")) {
    if (line.startsWith(name) && /^[{ ]/.test(line.slice(name.length)) && line.includes(label)) {
      total += Number(line.slice(line.lastIndexOf(" ") + 1));
    }
  }
  return total;
}
