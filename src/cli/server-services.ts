/**
 * What a server does besides serving the volumes it resumed: control API, metrics, the probe of its store, exports to
 * other clients. A module of its own, loaded once those volumes are served again: it brings gRPC, HTTP and the store's
 * client with it, which take longer to load than all that a resumed volume needs.
 */
import { ControlServer } from "../attachment/control-server.ts";
import { VolumeExports } from "../attachment/exports.ts";
import type { AttachmentRegistry } from "../attachment/registry.ts";
import type { VolumeHost } from "../attachment/volume-host.ts";
import type { WorkerPool } from "../attachment/worker-pool.ts";
import { isKind, OperationError } from "../base/errors.ts";
import { systemClock } from "../base/system-clock.ts";
import { systemRandom } from "../base/system-random.ts";
import { loadLibc } from "../nbd/kernel/libc.ts";
import { NbdServer } from "../nbd/server.ts";
import type { HttpServer } from "../observability/http.ts";
import { Metrics, type MetricsSnapshot } from "../observability/metrics.ts";
import type { StoreSettings } from "../store/open-store.ts";
import type { FlagValues } from "./flags.ts";
import type { listenAddresses } from "./listen-address.ts";
import { loadMetricsServer, serveMetrics } from "./process.ts";
import type { ProcessContext } from "./process.ts";
import { transmitElsewhere } from "./remote-transmission.ts";
import { mustProbeOwnStore, Stores } from "./stores.ts";
import type { Supervised } from "./supervision.ts";
import type { TrustedStore } from "./trusted-store.ts";

export interface ServerServicesParts extends ProcessContext {
  values: FlagValues;
  settings: StoreSettings;
  addresses: ReturnType<typeof listenAddresses>;
  nodeId: string;
  pool: WorkerPool;
  registry: AttachmentRegistry;
  host: VolumeHost;
  trustedStore: TrustedStore;
  supervised: Supervised | undefined;
}

/** Loads what opening the services would load. */
export async function preloadServices(values: FlagValues): Promise<void> {
  if (values.metricsAddress !== "") await Promise.all([loadMetricsServer(), Metrics.preload()]);
}

export class ServerServices {
  readonly #parts: ServerServicesParts;
  readonly #metrics = new Metrics();
  readonly #stores: Stores;
  readonly #control: ControlServer;
  readonly #exports: VolumeExports;
  #nbd: NbdServer | undefined;
  #http: HttpServer | undefined;

  /** Throws "invalid" where the settings of the store are wrong. */
  constructor(parts: ServerServicesParts) {
    this.#parts = parts;
    const { values, settings, nodeId, log, redactor, registry, host, supervised } = parts;
    this.#stores = new Stores({
      settings,
      clock: systemClock,
      random: systemRandom,
      log,
      redactor,
      observer: this.#metrics.storeObserver,
      limits: { deadlineMs: 20_000 },
    });
    const own = this.#stores.own();
    if (supervised !== undefined) this.#metrics.setTakeovers(() => supervised.takeovers());
    this.#control = new ControlServer({
      socketPath: values.controlSocket,
      dataPlane: registry,
      log,
      clock: systemClock,
    });
    this.#exports = new VolumeExports({
      host,
      clock: systemClock,
      log,
      idleMs: values.exportIdleMs,
      listVolumes: async () => (await this.#stores.catalog(own, nodeId).list()).volumes.map(({ id }) => id),
    });
  }

  /**
   * Resolves when the store is probed and clients are served; ends with an error where either cannot be. A standby goes
   * on for a process that has probed the store, and does not ask again.
   */
  async open(): Promise<void> {
    const { values, log, pool } = this.#parts;
    await this.#control.listen();
    this.#http = await serveMetrics(values, log, this.#metrics, () => metricsOfThreads(pool));
    if (this.#parts.supervised?.role !== "standby") await this.#probe();
    await this.#serveClients();
  }

  /** No new calls; answers what is in flight, leaves attached volumes to the next process, uploads and closes exports. */
  async close(): Promise<void> {
    const { registry } = this.#parts;
    const exported = (this.#nbd?.close() ?? Promise.resolve()).then(() => this.#exports.close());
    await Promise.all([this.#control.close(), registry.handOver(), exported]);
    await this.#http?.close();
  }

  /** Waits for a store that is away while a kernel device waits too. */
  async #probe(): Promise<void> {
    const { settings, registry, log, trustedStore } = this.#parts;
    for (;;) {
      try {
        await mustProbeOwnStore(this.#stores, settings);
        await trustedStore.trust();
        return;
      } catch (error) {
        if (!isKind(error, "unavailable")) await trustedStore.distrust();
        if (!isKind(error, "unavailable") || registry.count === 0) throw error;
        log.error("the store cannot be reached: attached volumes wait for it", { operation: "start", error });
        await systemClock.sleep(1000);
      }
    }
  }

  async #serveClients(): Promise<void> {
    const { addresses, log } = this.#parts;
    const transmit = transmitElsewhere(await loadLibc());
    this.#nbd = new NbdServer({ source: this.#exports, clock: systemClock, log, transmit });
    for (const address of addresses) {
      const port = await this.#nbd.listen(address);
      const where =
        "path" in address ? { path: address.path } : { host: address.host, port, tls: address.tls !== undefined };
      log.info("volumes are served to nbd clients", { operation: "start", ...where });
      if ("host" in address && address.insecure === true)
        log.warn("nbd over tcp is neither encrypted nor authenticated", { operation: "start", ...where });
    }
  }
}

async function metricsOfThreads(pool: WorkerPool): Promise<readonly MetricsSnapshot[]> {
  const timeout = systemClock.sleep(5000).then(() => {
    throw new OperationError("busy", "the threads did not tell their metrics in time");
  });
  return await Promise.race([pool.metrics(), timeout]);
}
