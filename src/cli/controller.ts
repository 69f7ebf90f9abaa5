/** s3block controller: the CSI controller, put together from a store's catalogs. It keeps no state. */
import { systemClock } from "../base/system-clock.ts";
import { systemRandom } from "../base/system-random.ts";
import { isKnownNode } from "../csi/node-registry.ts";
import { startController } from "../csi/plugin.ts";
import { Metrics } from "../observability/metrics.ts";
import type { ParsedArguments } from "./config.ts";
import { dieOfBugs, serveMetrics, startLogging, untilSignal } from "./process.ts";
import { keepMemoryPrivate } from "./process-protection.ts";
import { mustProbeOwnStore, Stores } from "./stores.ts";
import { storeSettings } from "./store-settings.ts";
import { programVersion } from "./version.ts";

/** A call ends with "unavailable" rather than later: its caller retries. */
const requestDeadlineMs = 20_000;

export async function runController({ values }: ParsedArguments): Promise<void> {
  const settings = storeSettings(values);
  const { log, redactor } = startLogging(values, { process: "controller" });
  dieOfBugs(log);
  await keepMemoryPrivate(log);
  const signalled = untilSignal(log);
  const metrics = new Metrics();
  const stores = new Stores({
    settings,
    clock: systemClock,
    random: systemRandom,
    log,
    redactor,
    observer: metrics.storeObserver,
    limits: { deadlineMs: requestDeadlineMs },
  });
  await mustProbeOwnStore(stores, settings);
  const http = await serveMetrics(values, log, metrics);
  const csi = await startController({
    socketPath: values.csiSocket,
    driverName: values.driverName,
    version: programVersion(),
    log,
    clock: systemClock,
    catalogFor: async (location, secrets) => {
      const where = location ?? { url: "", endpoint: "", region: "" };
      await stores.probe(where, secrets);
      return stores.catalog(stores.of(where, secrets), "controller");
    },
    isKnownNode: (nodeId) => isKnownNode(stores.own(), nodeId),
  });
  log.info("the controller is ready", { operation: "start", csiSocket: values.csiSocket, store: settings.url });
  await signalled;
  await csi.close();
  await http?.close();
  await stores.close();
  process.exit(0);
}
