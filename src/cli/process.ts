/**
 * What every long-running command shares: its logger, its metrics address, its end. An error at start is one line on
 * standard error and exit code 1; a bug at any time ends the process, since recovery must be right anyway.
 */
import { hostname } from "node:os";
import { describe } from "../base/errors.ts";
import type { Log, LogFields } from "../base/log.ts";
import type { HttpServer } from "../observability/http.ts";
import { createLogger } from "../observability/logger.ts";
import { Metrics, type MetricsSnapshot } from "../observability/metrics.ts";
import { Redactor } from "../observability/redaction.ts";
import type { FlagValues } from "./flags.ts";

export interface ProcessContext {
  log: Log;
  redactor: Redactor;
}

const secretVariables = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/** A redactor that knows the secrets of the environment, and a logger behind it. */
export function startLogging(values: Pick<FlagValues, "logLevel">, fields: LogFields): ProcessContext {
  const redactor = new Redactor();
  for (const name of secretVariables) redactor.addSecret(process.env[name] ?? "");
  return { redactor, log: createLogger({ level: values.logLevel, fields, redactor }) };
}

/** The id of this node: the flag's, else the host's name. */
export function nodeIdOf(values: Pick<FlagValues, "nodeId">): string {
  return values.nodeId === "" ? hostname() : values.nodeId;
}

/**
 * Serves /metrics (`metrics` with the process's own, summed with those of its threads) and /healthz where an address
 * is given, and loads what that needs only then. Throws where the address cannot be had.
 */
export async function serveMetrics(
  values: Pick<FlagValues, "metricsAddress">,
  log: Log,
  metrics: Metrics,
  ofThreads: () => Promise<readonly MetricsSnapshot[]> = async () => [],
): Promise<HttpServer | undefined> {
  if (values.metricsAddress === "") return undefined;
  const { HttpServer } = await loadMetricsServer();
  await metrics.addProcessMetrics();
  const expose = async (): Promise<string> => {
    const [own, others] = await Promise.all([metrics.snapshot(), ofThreads()]);
    return Metrics.expose([own, ...others]);
  };
  const server = new HttpServer({
    address: values.metricsAddress,
    log,
    metrics: expose,
    unhealthy: () => undefined,
  });
  const address = await server.listen();
  log.info("metrics are served", { operation: "start", address });
  if (!/^(127\.|\[::1\])/.test(address)) {
    const message =
      "metrics are neither encrypted nor authenticated: names and figures of volumes show, their data never";
    log.warn(message, { operation: "start", address });
  }
  return server;
}

/** What serveMetrics loads. */
export async function loadMetricsServer(): Promise<typeof import("../observability/http.ts")> {
  return await import("../observability/http.ts");
}

/** Resolves at the first SIGTERM or SIGINT; a second one ends the process at once. */
export function untilSignal(log: Log): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let first = true;
    const handle = (signal: NodeJS.Signals): void => {
      log.info("signal received", { operation: "stop", signal });
      if (!first) process.exit(1);
      first = false;
      resolve(signal);
    };
    process.on("SIGTERM", handle);
    process.on("SIGINT", handle);
  });
}

/** Logs what nobody caught and ends the process. */
export function dieOfBugs(log: Log): void {
  const die = (error: unknown): void => {
    const stack = error instanceof Error ? error.stack : undefined;
    log.error("the process ends because of a bug", { operation: "bug", error: describe(error), stack });
    process.exit(70);
  };
  process.on("uncaughtException", die);
  process.on("unhandledRejection", die);
}
