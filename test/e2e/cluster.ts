/**
 * The driver as it runs in a cluster: a controller and any number of nodes (server and node service, each with state,
 * run and kubelet directories of its own) as processes on one store, all in one temporary directory of one machine.
 * They need root and a kernel with nbd (test/kernel/kernel-tests.ts). close() leaves nothing behind, whatever failed.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before } from "node:test";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { listMounts } from "../../src/host/mount.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";
import { CsiClient } from "../csi/csi-client.ts";
import { run } from "./content.ts";
import { DriverProcess } from "./process.ts";

export interface ClusterOptions {
  /** Where everything of it is, and may be already; default a temporary one. close() removes it. */
  directory?: string;
  /** Names of the nodes; default one, "e2e-a". */
  nodes?: readonly string[];
  /** Default: a directory store. */
  storeFlags?: readonly string[];
  /** Of every process. */
  environment?: Readonly<Record<string, string>>;
  /** Of the servers; a flag given here stands instead of the cluster's own. */
  serverFlags?: readonly string[];
}

/** One machine of the cluster. */
export class ClusterNode {
  readonly id: string;
  readonly directory: string;
  readonly server: DriverProcess;
  readonly service: DriverProcess;
  #client: CsiClient | undefined;

  constructor(id: string, directory: string, options: { storeFlags: readonly string[] } & ClusterOptions) {
    this.id = id;
    this.directory = directory;
    const { storeFlags, environment, serverFlags = [] } = options;
    const controlSocket = `--control-socket=${this.path("run/control.sock")}`;
    const given = new Set(serverFlags.map(flagName));
    const own = [
      `--state-dir=${this.path("state")}`,
      `--run-dir=${this.path("run")}`,
      "--journal-size=128MiB",
      "--cache-size=64MiB",
      "--metrics-address=127.0.0.1:0",
    ].filter((flag) => !given.has(flagName(flag)));
    const shared = [...storeFlags, `--node-id=${id}`, controlSocket];
    this.server = new DriverProcess("server", [...shared, ...own, ...serverFlags], environment);
    const service = [`--csi-socket=${this.path("csi.sock")}`, `--kubelet-dir=${this.kubeletDir}`];
    this.service = new DriverProcess("node", [...shared, ...service], environment);
  }

  path(...names: string[]): string {
    return join(this.directory, ...names);
  }

  get kubeletDir(): string {
    return this.path("kubelet");
  }

  get client(): CsiClient {
    this.#client ??= new CsiClient(this.path("csi.sock"));
    return this.#client;
  }

  async start(): Promise<void> {
    await mkdir(this.kubeletDir, { recursive: true });
    await Promise.all([this.server.start(), this.service.start()]);
    await this.service.logged("the node is registered");
  }

  /** Forgets everything that this machine keeps, as if it were a new one of the same name. Nothing may be attached. */
  async wipe(): Promise<void> {
    await this.server.stop("SIGTERM");
    await rm(this.path("state"), { recursive: true, force: true });
    await rm(this.path("run"), { recursive: true, force: true });
    await this.server.start();
  }

  /** What the server answers over HTTP. */
  async get(path: "/metrics" | "/healthz"): Promise<{ status: number; text: string }> {
    const { address } = await this.server.logged("metrics are served");
    const response = await fetch(`http://${String(address)}${path}`);
    return { status: response.status, text: await response.text() };
  }

  /** The value of a metric of one volume. */
  async metric(name: string, volumeId: string): Promise<number> {
    const { text } = await this.get("/metrics");
    const value = new RegExp(`^${name}\\{volume="${volumeId}"\\} (\\S+)$`, "m").exec(text)?.[1];
    if (value === undefined) throw new Error(`no metric ${name} of ${volumeId}:\n${text}`);
    return Number(value);
  }

  closeClient(): void {
    this.#client?.close();
  }
}

export class Cluster {
  readonly directory: string;
  readonly controller: DriverProcess;
  readonly nodes: readonly ClusterNode[];
  readonly controllerClient: CsiClient;

  private constructor(directory: string, options: ClusterOptions) {
    this.directory = directory;
    const { nodes = ["e2e-a"], storeFlags = [`--store=file://${join(directory, "store")}`] } = options;
    const socket = join(directory, "controller.sock");
    this.controller = new DriverProcess("controller", [...storeFlags, `--csi-socket=${socket}`], options.environment);
    this.controllerClient = new CsiClient(socket);
    this.nodes = nodes.map((id) => new ClusterNode(id, join(directory, id), { ...options, storeFlags }));
  }

  /** All processes, serving. */
  static async start(options: ClusterOptions = {}): Promise<Cluster> {
    const cluster = new Cluster(options.directory ?? (await mkdtemp(join(tmpdir(), "s3block-e2e-"))), options);
    try {
      await mkdir(cluster.storeDirectory, { recursive: true });
      await cluster.controller.start();
      for (const node of cluster.nodes) await node.start();
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  get storeDirectory(): string {
    return join(this.directory, "store");
  }

  /** The ends of all logs. */
  report(): string {
    const processes = [this.controller, ...this.nodes.flatMap((node) => [node.service, node.server])];
    return processes.map((each) => `--- ${each.command}${each.tail()}\n`).join("");
  }

  /** Ends everything, frees the devices, unmounts what is left, removes the directory. */
  async close(): Promise<void> {
    this.controllerClient.close();
    for (const node of this.nodes) node.closeClient();
    const processes = [this.controller, ...this.nodes.flatMap((node) => [node.service, node.server])];
    await Promise.all(processes.map((each) => each.stop("SIGKILL")));
    // A device goes when nobody has it open; a program that still writes there gets errors and ends.
    const freed = this.#freeDevices();
    const mounts = (await listMounts()).filter((mount) => mount.mountPoint.startsWith(`${this.directory}/`));
    for (const mount of mounts.toReversed()) await run("umount", ["--lazy", mount.mountPoint]);
    await freed;
    await rm(this.directory, { recursive: true, force: true });
  }

  async #freeDevices(): Promise<void> {
    const kernel = await openKernelNbd({ clock: systemClock, log: nullLog });
    const devices = kernel.list().flatMap(({ index, backendIdentifier = "", connected }) => {
      const isOurs = this.nodes.some((node) => backendIdentifier.startsWith(`s3block:${node.id}:`));
      return connected && isOurs ? [{ index, backendIdentifier, force: true }] : [];
    });
    await Promise.all(devices.map((device) => kernel.disconnect(device)));
  }
}

/** A cluster for the tests of a file or suite; where one of them fails, the ends of the processes' logs are shown. */
export function useCluster(start: () => Promise<Cluster>): () => Cluster {
  let cluster: Cluster | undefined;
  before(async () => {
    cluster = await start();
  });
  afterEach((context) => {
    if ("passed" in context && !context.passed) process.stdout.write(cluster?.report() ?? "");
  });
  after(() => cluster?.close());
  return () => {
    if (cluster === undefined) throw new Error("the cluster is there once tests run");
    return cluster;
  };
}

function flagName(flag: string): string {
  return flag.slice(0, flag.indexOf("="));
}
