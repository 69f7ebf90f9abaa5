/**
 * s3block server: the data plane of a node. This thread controls (control API, kernel devices, handshakes, metrics) and
 * never serves a block; volumes live in threads of their own (server-worker.ts).
 *
 * Start: threads, and meanwhile lock the state directory → what is attached → resume → everything else
 * (server-services.ts). Mounted file systems wait for this start: nothing stands before the resuming of their volumes,
 * and no module is loaded before it, that it can do without. A standby has loaded everything, and waits at the lock.
 * End (SIGTERM): no new calls → answer what is in flight → leave volumes to the successor → exit. Kernel devices stay
 * configured and wait; exports are uploaded and closed.
 */
import { flushCompileCache } from "node:module";
import { availableParallelism } from "node:os";
import { AttachmentRecords } from "../attachment/attachment-record.ts";
import { KernelNbdDevices } from "../attachment/kernel-nbd-devices.ts";
import type { KernelDevices } from "../attachment/kernel-devices.ts";
import { AttachmentRegistry } from "../attachment/registry.ts";
import type { VolumeHost } from "../attachment/volume-host.ts";
import { LimitedHost } from "../attachment/volume-limit.ts";
import { describe, isKind } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { systemClock } from "../base/system-clock.ts";
import { openSystemDisk } from "../base/system-disk.ts";
import { openKernelNbd } from "../nbd/kernel/kernel-nbd.ts";
import { loadLibc } from "../nbd/kernel/libc.ts";
import type { ParsedArguments } from "./config.ts";
import { listenAddresses } from "./listen-address.ts";
import type { FlagValues } from "./flags.ts";
import { dieOfBugs, nodeIdOf, startLogging, untilSignal } from "./process.ts";
import { keepMemoryPrivate, protectProcess, returnFreedMemory } from "./process-protection.ts";
import { probedHost } from "./probed-host.ts";
import { startThreads } from "./server-threads.ts";
import { lockDirectory } from "./state-lock.ts";
import { storeSettings } from "./store-settings.ts";
import type { Supervised } from "./supervision.ts";
import { TrustedStore } from "./trusted-store.ts";

/** Other work of the start does not wait longer for volumes that cannot be resumed yet. */
const resumeMs = 2000;

/** Serves until it is told to end, and ends the process. `supervised` where a supervisor has started it. */
export async function runServer({ values }: ParsedArguments, supervised?: Supervised): Promise<void> {
  const settings = storeSettings(values);
  const addresses = listenAddresses(values);
  const nodeId = nodeIdOf(values);
  const { log, redactor } = startLogging(values, { process: "server", nodeId, pid: process.pid });
  dieOfBugs(log);
  await keepMemoryPrivate(log);
  await returnFreedMemory(log);
  const isStandby = supervised?.role === "standby";
  const ending = endOf(log, supervised);
  const threads = startThreads({ values, settings, nodeId, log, cores: availableParallelism(), isStandby });
  if (isStandby) {
    await Promise.all([threads.loaded, preload(values)]);
    flushCompileCache();
    supervised.tell("standing-by");
  }
  const turn = isStandby ? { turn: supervised.turn } : {};
  const locked = lockDirectory(values.stateDir, { waitSeconds: values.shutdownSeconds + 10, ...turn, log });
  if ((await Promise.race([locked, ending])) !== undefined) process.exit(0);
  if (isStandby) log.info("the standby goes on", { operation: "start" });
  const ready = threads.begin();
  const trustedStore = new TrustedStore({ stateDir: values.stateDir, settings, log });
  const probed = Promise.withResolvers<void>();
  // What the process before a standby has found out holds for the one server that they are.
  const isTrusted = isStandby || (await trustedStore.isTrusted());
  const resumable = isTrusted ? Promise.resolve() : probed.promise;
  const host = probedHost({
    inner: new LimitedHost(threads.pool, values.maxVolumes),
    redactor,
    probed: probed.promise,
    resumable,
  });
  const starting = makeRegistry({ values, nodeId, log, host });
  const [registry] = await Promise.all([starting, ready, starting.then((made) => made.recover())]);
  await protectProcess(log);
  if (isTrusted) await Promise.race([registry.resumed(), systemClock.sleep(resumeMs)]);

  const { ServerServices } = await import("./server-services.ts");
  const { pool } = threads;
  const parts = { values, settings, addresses, nodeId, log, redactor, pool, registry, host, trustedStore, supervised };
  const services = new ServerServices(parts);
  const opened = services.open().then(probed.resolve);
  if ((await Promise.race([opened, ending])) === undefined) {
    flushCompileCache();
    log.info("the server is ready", { operation: "start", store: settings.url, controlSocket: values.controlSocket });
    supervised?.tell("ready");
    await ending;
  }
  opened.catch((error: unknown) => log.warn("the start was not finished", { operation: "stop", error }));
  systemClock.after(values.shutdownSeconds * 1000, () => {
    log.error("the orderly end took too long: what is not in the store stays in the journal", { operation: "stop" });
    process.exit(1);
  });
  await services.close();
  await pool.stop();
  log.info("the server has stopped", { operation: "stop" });
  process.exit(0);
}

/** Resolves when the server is to end in order: at a signal, or when its supervisor is gone. */
async function endOf(log: Log, supervised: Supervised | undefined): Promise<string> {
  const signalled = untilSignal(log);
  if (supervised === undefined) return await signalled;
  const orphaned = supervised.orphaned.then((reason) => {
    log.warn("the supervisor is gone: this process ends as well", { operation: "stop" });
    return reason;
  });
  return await Promise.race([signalled, orphaned]);
}

/** Loads what a server loads after its volumes are served. */
async function preload(values: FlagValues): Promise<void> {
  const { preloadServices } = await import("./server-services.ts");
  await preloadServices(values);
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
  const { nbdTimeoutMs: requestTimerMs, deadConnectionTimeoutSeconds } = values;
  const closeFd = (fd: number): void => libc.close(fd);
  if (nbd !== undefined) return new KernelNbdDevices({ nbd, closeFd, requestTimerMs, deadConnectionTimeoutSeconds });
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
