/**
 * s3block node: the CSI node service. It holds nothing that outlives a call; its one trace is the node's record in the
 * store, by which the controller knows it.
 */
import { ControlClient } from "../attachment/control-client.ts";
import { systemClock } from "../base/system-clock.ts";
import { systemRandom } from "../base/system-random.ts";
import { registerNode } from "../csi/node-registry.ts";
import { startNode } from "../csi/plugin.ts";
import { Metrics } from "../observability/metrics.ts";
import type { ParsedArguments } from "./config.ts";
import { dieOfBugs, nodeIdOf, serveMetrics, startLogging, untilSignal } from "./process.ts";
import { keepMemoryPrivate } from "./process-protection.ts";
import { Stores } from "./stores.ts";
import { storeSettings } from "./store-settings.ts";
import { programVersion } from "./version.ts";

export async function runNode({ values }: ParsedArguments): Promise<void> {
  const settings = storeSettings(values);
  const nodeId = nodeIdOf(values);
  const { log, redactor } = startLogging(values, { process: "node", nodeId });
  dieOfBugs(log);
  await keepMemoryPrivate(log);
  const signalled = untilSignal(log);
  const metrics = new Metrics();
  const observer = metrics.storeObserver;
  const stores = new Stores({ settings, clock: systemClock, random: systemRandom, log, redactor, observer });
  const http = await serveMetrics(values, log, metrics);
  // Unmounting must work while the store is away, so the record is written behind the start.
  void registerNode({ store: stores.own(), random: systemRandom }, nodeId).then(
    () => log.info("the node is registered", { operation: "start", store: settings.url }),
    (error: unknown) => {
      log.error("the node could not be registered: no volume can be published to it", { operation: "start", error });
      process.exit(1);
    },
  );
  const dataPlane = new ControlClient({ socketPath: values.controlSocket });
  const csi = await startNode({
    socketPath: values.csiSocket,
    driverName: values.driverName,
    version: programVersion(),
    log,
    clock: systemClock,
    nodeId,
    maxVolumesPerNode: values.maxVolumesPerNode,
    kubeletDir: values.kubeletDir,
    dataPlane,
  });
  log.info("the node service is ready", { operation: "start", csiSocket: values.csiSocket });
  await signalled;
  await csi.close();
  dataPlane.close();
  await http?.close();
  await stores.close();
  process.exit(0);
}
