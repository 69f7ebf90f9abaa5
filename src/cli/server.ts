/**
 * s3block server: the data plane of a node. This thread controls (control API, kernel devices, handshakes, metrics) and
 * never serves a block; volumes live in threads of their own (server-worker.ts).
 *
 * Start: mark the process → lock the state directory → find what is attached → threads → control API → probe → resume.
 * End (SIGTERM): no new calls → answer what is in flight → leave volumes to the successor → exit. Kernel devices stay
 * configured and wait; exports are uploaded and closed.
 */
import { flushCompileCache } from "node:module";
import { availableParallelism } from "node:os";
import { AttachmentRecords } from "../attachment/attachment-record.ts";
import { ControlServer } from "../attachment/control-server.ts";
import { VolumeExports } from "../attachment/exports.ts";
import { KernelNbdDevices } from "../attachment/kernel-nbd-devices.ts";
import type { KernelDevices } from "../attachment/kernel-devices.ts";
import { AttachmentRegistry } from "../attachment/registry.ts";
import type { VolumeHost } from "../attachment/volume-host.ts";
import { LimitedHost } from "../attachment/volume-limit.ts";
import type { WorkerPool } from "../attachment/worker-pool.ts";
import { describe, isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { systemClock } from "../base/system-clock.ts";
import { openSystemDisk } from "../base/system-disk.ts";
import { systemRandom } from "../base/system-random.ts";
import { openKernelNbd } from "../nbd/kernel/kernel-nbd.ts";
import { loadLibc } from "../nbd/kernel/libc.ts";
import { NbdServer } from "../nbd/server.ts";
import { Metrics } from "../observability/metrics.ts";
import type { StoreSettings } from "../store/open-store.ts";
import type { ParsedArguments } from "./config.ts";
import { listenAddresses } from "./listen-address.ts";
import type { FlagValues } from "./flags.ts";
import { dieOfBugs, nodeIdOf, serveMetrics, startLogging, untilSignal } from "./process.ts";
import type { ProcessContext } from "./process.ts";
import { protectProcess } from "./process-protection.ts";
import { transmitElsewhere } from "./remote-transmission.ts";
import { startWorkers } from "./server-threads.ts";
import { lockDirectory } from "./state-lock.ts";
import { mustProbeOwnStore, Stores, storeSettings } from "./stores.ts";

interface Parts extends ProcessContext {
  values: FlagValues;
  settings: StoreSettings;
  nodeId: string;
  metrics: Metrics;
  stores: Stores;
  pool: WorkerPool;
  registry: AttachmentRegistry;
}

export async function runServer({ values }: ParsedArguments): Promise<void> {
  const settings = storeSettings(values);
  const addresses = listenAddresses(values);
  const nodeId = nodeIdOf(values);
  const { log, redactor } = startLogging(values, { process: "server", nodeId });
  dieOfBugs(log);
  const signalled = untilSignal(log);
  const metrics = new Metrics();
  metrics.addProcessMetrics();
  const stores = new Stores({
    settings,
    clock: systemClock,
    random: systemRandom,
    log,
    redactor,
    observer: metrics.storeObserver,
    limits: { deadlineMs: 20_000 },
  });
  stores.own();
  await protectProcess(log);
  await lockDirectory(values.stateDir, values.shutdownSeconds + 10, log);
  const pool = await startWorkers({ values, settings, nodeId, log, cores: availableParallelism() });
  const probed = Promise.withResolvers<void>();
  const host = probedHost(new LimitedHost(pool, values.maxVolumes), redactor, probed.promise);
  const registry = await makeRegistry({ values, nodeId, log, host });
  const parts: Parts = { values, settings, nodeId, log, redactor, metrics, stores, pool, registry };
  const http = await serveMetrics(values, log, () => exposeAll(parts));
  await registry.recover();
  const control = new ControlServer({ socketPath: values.controlSocket, dataPlane: registry, log, clock: systemClock });
  await control.listen();
  const early = await Promise.race([probeUntilReached(parts), signalled]);
  if (early !== undefined) process.exit(0);
  probed.resolve();
  const exports = makeExports(parts, host);
  const nbd = await serveClients(parts, exports, addresses);
  flushCompileCache();
  log.info("the server is ready", { operation: "start", store: settings.url, controlSocket: values.controlSocket });
  await signalled;
  systemClock.after(values.shutdownSeconds * 1000, () => {
    log.error("the orderly end took too long: what is not in the store stays in the journal", { operation: "stop" });
    process.exit(1);
  });
  await Promise.all([control.close(), registry.handOver(), nbd.close().then(() => exports.close())]);
  await pool.stop();
  await http?.close();
  log.info("the server has stopped", { operation: "stop" });
  process.exit(0);
}

/**
 * No volume is served before the store has shown that it keeps conditional writes. One that this node had before a
 * restart is opened meanwhile, because its users wait: where the probe fails, the process ends before it is served.
 */
function probedHost(inner: VolumeHost, redactor: ProcessContext["redactor"], probed: Promise<void>): VolumeHost {
  return {
    open: async (request) => {
      for (const secret of Object.values(request.secrets)) redactor.addSecret(secret);
      if (request.mode === "take") await probed;
      const [volume] = await Promise.all([inner.open(request), probed]);
      return volume;
    },
    openBroken: (request) => inner.openBroken(request),
  };
}

async function makeRegistry(options: {
  values: FlagValues;
  nodeId: string;
  log: Log;
  host: VolumeHost;
}): Promise<AttachmentRegistry> {
  const { values, nodeId, log, host } = options;
  const run = await openSystemDisk(values.runDir);
  const records = new AttachmentRecords(await run.directory("attachments"));
  const kernel = await kernelDevices(values, log);
  return new AttachmentRegistry({ host, kernel, records, clock: systemClock, log, nodeId });
}

/** The kernel's devices; where there are none the server still serves other clients, and an attach says what is missing. */
async function kernelDevices(values: FlagValues, log: Log): Promise<KernelDevices> {
  const libc = await loadLibc();
  let lack: unknown;
  const nbd = await openKernelNbd({ clock: systemClock, log }).catch((error: unknown) => {
    if (!isKind(error, "unavailable")) throw error;
    log.warn("no volume can be attached to this machine's kernel", { operation: "start", error: describe(error) });
    lack = error;
    return undefined;
  });
  const { nbdTimeoutSeconds: timeoutSeconds, deadConnectionTimeoutSeconds } = values;
  const closeFd = (fd: number): void => libc.close(fd);
  if (nbd !== undefined) return new KernelNbdDevices({ nbd, closeFd, timeoutSeconds, deadConnectionTimeoutSeconds });
  const refuse = (): never => {
    throw lack;
  };
  return {
    socketPair: refuse,
    closeFd,
    connect: async () => refuse(),
    reconnect: async () => refuse(),
    disconnect: async () => {},
    list: async () => [],
    usage: async () => undefined,
  };
}

/** Ends the process where the store is not what it must be; waits for one that is away while a kernel device waits too. */
async function probeUntilReached({ stores, settings, registry, log }: Parts): Promise<void> {
  for (;;) {
    try {
      await mustProbeOwnStore(stores, settings);
      return;
    } catch (error) {
      if (!isKind(error, "unavailable") || registry.count === 0) throw error;
      log.error("the store cannot be reached: attached volumes wait for it", { operation: "start", error });
      await systemClock.sleep(1000);
    }
  }
}

function makeExports({ stores, nodeId, log, values }: Parts, host: VolumeHost): VolumeExports {
  return new VolumeExports({
    host,
    clock: systemClock,
    log,
    idleMs: values.exportIdleMs,
    listVolumes: async () => (await stores.catalog(stores.own(), nodeId).list()).volumes.map(({ id }) => id),
  });
}

async function serveClients(
  { log }: Parts,
  source: VolumeExports,
  addresses: ReturnType<typeof listenAddresses>,
): Promise<NbdServer> {
  const libc = await loadLibc();
  const server = new NbdServer({ source, clock: systemClock, log, transmit: transmitElsewhere(libc) });
  for (const address of addresses) {
    const port = await server.listen(address);
    const where =
      "path" in address ? { path: address.path } : { host: address.host, port, tls: address.tls !== undefined };
    log.info("volumes are served to nbd clients", { operation: "start", ...where });
    if ("host" in address && address.insecure === true)
      log.warn("nbd over tcp is neither encrypted nor authenticated", { operation: "start", ...where });
  }
  return server;
}

async function exposeAll({ metrics, pool }: Parts): Promise<string> {
  const timeout = systemClock.sleep(5000).then(() => {
    throw new OperationError("busy", "the threads did not tell their metrics in time");
  });
  const snapshots = await Promise.race([Promise.all([metrics.snapshot(), pool.metrics()]), timeout]);
  return Metrics.expose([snapshots[0], ...snapshots[1]]);
}
