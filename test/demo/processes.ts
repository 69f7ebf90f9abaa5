/**
 * The driver's processes as they run in a cluster, one controller and any number of nodes (a server and a node process
 * each), on unix sockets below one directory. Logs go to a directory that the caller keeps or removes.
 * Every process leads a group of its own: Ctrl-C on the terminal reaches the demonstration alone, which then ends them
 * in order. Nothing here knows what is done with the processes.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const mainPath = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const startDeadlineMs = 60_000;
/** An orderly end of a server uploads what is left; beyond it the journal keeps that. */
const stopDeadlineMs = 30_000;

/** Where processes find their store, and where they log. */
export interface ProcessSettings {
  storeUrl: string;
  logDirectory: string;
}

export interface StoreTraffic {
  /** By kind: put, get, list, delete. */
  requests: Record<string, number>;
  putBytes: number;
  getBytes: number;
}

/** One process of the program, startable again after it ended. */
export class ProgramProcess {
  readonly name: string;
  readonly #words: readonly string[];
  readonly #logPath: string;
  readonly #readyMessage: string;
  #child: ChildProcess | undefined;
  /** Where the log of the present run begins. */
  #logStart = 0;

  constructor(
    settings: ProcessSettings,
    what: { name: string; command: string; flags: readonly string[]; readyMessage: string },
  ) {
    this.name = what.name;
    this.#words = [
      what.command,
      `--store=${settings.storeUrl}`,
      "--metrics-address=127.0.0.1:0",
      "--log-level=debug",
      ...what.flags,
    ];
    this.#readyMessage = what.readyMessage;
    this.#logPath = join(settings.logDirectory, `${what.name}.log`);
  }

  get isRunning(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get pid(): number {
    return this.#child?.pid ?? -1;
  }

  /** Starts it and resolves when it says that it is ready; throws with its last words where it ends instead. */
  async start(): Promise<void> {
    const log = openSync(this.#logPath, "a");
    this.#logStart = readFileSync(this.#logPath).length;
    this.#child = spawn(process.execPath, [mainPath, ...this.#words], {
      env: environmentOfPrograms(),
      stdio: ["ignore", log, log],
      detached: true,
    });
    closeSync(log);
    const deadlineMs = performance.now() + startDeadlineMs;
    while (!this.#logged().includes(`"${this.#readyMessage}"`)) {
      if (!this.isRunning || performance.now() > deadlineMs) {
        const lastWords = this.#logged().trim().split("\n").slice(-3).join("\n");
        throw new Error(`${this.name} ${this.isRunning ? "does not get ready" : "ended"}:\n${lastWords}`);
      }
      await sleep(20);
    }
  }

  /** Ends it; by SIGKILL where the orderly end takes too long. */
  async stop(signal: "SIGTERM" | "SIGKILL"): Promise<void> {
    const child = this.#child;
    if (child === undefined || !this.isRunning) return;
    const ended = once(child, "exit");
    child.kill(signal);
    const timer = setTimeout(() => child.kill("SIGKILL"), stopDeadlineMs);
    await ended;
    clearTimeout(timer);
  }

  /** What this run has asked of the store so far, as it tells at /metrics. */
  async traffic(): Promise<StoreTraffic> {
    const address = /"message":"metrics are served".*?"address":"([^"]+)"|"address":"([^"]+)".*?"metrics are served"/;
    const found = address.exec(this.#logged());
    if (found === null) throw new Error(`${this.name} serves no metrics`);
    const answer = await fetch(`http://${found[1] ?? found[2]}/metrics`);
    if (!answer.ok) throw new Error(`${this.name} answers ${answer.status} when asked for its metrics`);
    return parseTraffic(await answer.text());
  }

  #logged(): string {
    return readFileSync(this.#logPath).subarray(this.#logStart).toString();
  }
}

/** The server and the node process of one machine, and its directories. */
export class DemoNode {
  readonly id: string;
  readonly directory: string;
  readonly kubeletDir: string;
  readonly csiSocket: string;
  readonly server: ProgramProcess;
  readonly node: ProgramProcess;

  constructor(settings: ProcessSettings, id: string, directory: string) {
    this.id = id;
    this.directory = directory;
    this.kubeletDir = join(directory, "kubelet");
    this.csiSocket = join(directory, "csi.sock");
    const controlSocket = join(directory, "run/control.sock");
    const shared = [`--node-id=${id}`, `--control-socket=${controlSocket}`];
    this.server = new ProgramProcess(settings, {
      name: `${id}.server`,
      command: "server",
      flags: [
        ...shared,
        `--state-dir=${this.stateDir}`,
        `--run-dir=${this.runDir}`,
        "--journal-size=256MiB",
        "--cache-size=256MiB",
      ],
      readyMessage: "the server is ready",
    });
    this.node = new ProgramProcess(settings, {
      name: `${id}.node`,
      command: "node",
      flags: [...shared, `--csi-socket=${this.csiSocket}`, `--kubelet-dir=${this.kubeletDir}`],
      readyMessage: "the node service is ready",
    });
  }

  /** Journal and cache. */
  get stateDir(): string {
    return join(this.directory, "state");
  }

  /** Records of what is attached. */
  get runDir(): string {
    return join(this.directory, "run");
  }

  async start(): Promise<void> {
    await mkdir(this.kubeletDir, { recursive: true });
    await this.server.start();
    await this.node.start();
  }

  async stop(): Promise<void> {
    await this.node.stop("SIGTERM");
    await this.server.stop("SIGTERM");
  }
}

/** The sum over processes; those that do not run count nothing. */
export async function sumTraffic(processes: readonly ProgramProcess[]): Promise<StoreTraffic> {
  const running = processes.filter((process) => process.isRunning);
  const all = await Promise.all(running.map((process) => process.traffic()));
  return all.reduce(addTraffic, noTraffic());
}

export function noTraffic(): StoreTraffic {
  return { requests: { put: 0, get: 0, list: 0, delete: 0 }, putBytes: 0, getBytes: 0 };
}

/** a + sign × b. */
export function addTraffic(a: StoreTraffic, b: StoreTraffic, sign: number = 1): StoreTraffic {
  const kinds = Object.keys({ ...a.requests, ...b.requests });
  return {
    requests: Object.fromEntries(kinds.map((kind) => [kind, (a.requests[kind] ?? 0) + sign * (b.requests[kind] ?? 0)])),
    putBytes: a.putBytes + sign * b.putBytes,
    getBytes: a.getBytes + sign * b.getBytes,
  };
}

function parseTraffic(text: string): StoreTraffic {
  const traffic = noTraffic();
  for (const [, metric, kind, value] of text.matchAll(
    /^s3block_store_(requests|bytes)_total\{[^}\n]*?kind="([a-z]+)"[^}\n]*\} (\S+)$/gm,
  )) {
    if (metric === "requests") traffic.requests[kind] = (traffic.requests[kind] ?? 0) + Number(value);
    else if (kind === "put") traffic.putBytes += Number(value);
    else if (kind === "get") traffic.getBytes += Number(value);
  }
  return traffic;
}

/** What the store's flags, the S3 client and Node itself read; nothing else of ours gets through. */
function environmentOfPrograms(): Record<string, string> {
  const wanted = /^(PATH|HOME|AWS_.*|S3BLOCK_S3_.*|NODE_(EXTRA_CA_CERTS|COMPILE_CACHE))$/;
  const entries = Object.entries(process.env).filter(([name]) => wanted.test(name));
  return Object.fromEntries(entries.map(([name, value]) => [name, value ?? ""]));
}
