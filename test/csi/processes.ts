/**
 * Controller, server and node as the processes that run in a cluster, in a directory of their own, on a directory
 * store. They need root and a kernel with nbd (test/kernel/kernel-tests.ts).
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, openSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { listMounts, unmount } from "../../src/host/mount.ts";
import { CsiClient } from "./csi-client.ts";

const mainPath = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
export const CLUSTER_NODE_ID = "test-node";
export type ProcessName = "controller" | "server" | "node";

export class ProcessCluster {
  readonly directory: string;
  readonly #processes = new Map<ProcessName, ChildProcess>();
  #client: { controller: CsiClient; node: CsiClient } | undefined;

  private constructor(directory: string) {
    this.directory = directory;
  }

  /** All three, serving. */
  static async start(): Promise<ProcessCluster> {
    const cluster = new ProcessCluster(await mkdtemp(join(tmpdir(), "s3block-")));
    await mkdir(cluster.kubeletDir);
    await mkdir(cluster.path("store"));
    for (const name of ["server", "controller", "node"] as const) await cluster.startProcess(name);
    return cluster;
  }

  path(...names: string[]): string {
    return join(this.directory, ...names);
  }

  get kubeletDir(): string {
    return this.path("kubelet");
  }

  get controllerSocket(): string {
    return this.path("controller.sock");
  }

  get nodeSocket(): string {
    return this.path("node.sock");
  }

  /** Clients that find restarted processes again. */
  get clients(): { controller: CsiClient; node: CsiClient } {
    this.#client ??= { controller: new CsiClient(this.controllerSocket), node: new CsiClient(this.nodeSocket) };
    return this.#client;
  }

  /** Starts a process that is not running and waits until it serves. */
  async startProcess(name: ProcessName): Promise<void> {
    const controlSocket = this.path("run/control.sock");
    const specific: Record<ProcessName, string[]> = {
      controller: ["--csi-socket", this.controllerSocket],
      server: [
        "--control-socket",
        controlSocket,
        "--state-dir",
        this.path("state"),
        "--run-dir",
        this.path("run"),
        "--journal-size",
        "256MiB",
        "--node-id",
        CLUSTER_NODE_ID,
      ],
      node: [
        "--csi-socket",
        this.nodeSocket,
        "--control-socket",
        controlSocket,
        "--kubelet-dir",
        this.kubeletDir,
        "--node-id",
        CLUSTER_NODE_ID,
      ],
    };
    const socket = { controller: this.controllerSocket, server: controlSocket, node: this.nodeSocket }[name];
    await rm(socket, { force: true });
    const log = openSync(this.path(`${name}.log`), "a");
    const child = spawn(
      process.execPath,
      [mainPath, name, "--store", `file://${this.path("store")}`, ...specific[name]],
      {
        env: { PATH: process.env.PATH ?? "", NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? "" },
        stdio: ["ignore", log, log],
      },
    );
    this.#processes.set(name, child);
    while (!existsSync(socket)) {
      if (child.exitCode !== null || child.signalCode !== null)
        throw new Error(`${name} ended:\n${await this.logOf(name)}`);
      await sleep(20);
    }
  }

  /** Ends a process by a signal and waits for its end. */
  async stopProcess(name: ProcessName, signal: NodeJS.Signals): Promise<void> {
    const child = this.#processes.get(name);
    this.#processes.delete(name);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  }

  async restartProcess(name: ProcessName, signal: NodeJS.Signals): Promise<void> {
    await this.stopProcess(name, signal);
    await this.startProcess(name);
  }

  logOf(name: ProcessName): Promise<string> {
    return readFile(this.path(`${name}.log`), "utf8");
  }

  /** Unmounts what is left, ends everything, removes the directory. */
  async close(): Promise<void> {
    this.#client?.controller.close();
    this.#client?.node.close();
    const mounts = (await listMounts()).filter((mount) => mount.mountPoint.startsWith(`${this.kubeletDir}/`));
    for (const mount of mounts.toReversed()) await unmount(mount.mountPoint);
    for (const name of ["node", "controller", "server"] as const) await this.stopProcess(name, "SIGTERM");
    await rm(this.directory, { recursive: true });
  }
}
