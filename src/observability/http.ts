/**
 * The small HTTP server of every process: GET /healthz and GET /metrics, nothing else.
 * It is bounded (connections, header and request time) so that a slow or hostile scraper costs nothing that counts,
 * and it never shows stacks or secrets: a handler that fails answers 500 with one fixed line.
 */
import { createServer } from "node:http";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { metricsContentType } from "./metrics.ts";

export interface HttpOptions {
  /** "host:port"; port 0 takes a free one. An IPv6 host stands in brackets. */
  address: string;
  log: Log;
  /** Prometheus text. */
  metrics: () => Promise<string>;
  /** Undefined when healthy, else one line why not. */
  unhealthy: () => string | undefined;
}

export class HttpServer {
  readonly #server: Server;
  readonly #options: HttpOptions;

  constructor(options: HttpOptions) {
    this.#options = options;
    this.#server = createServer({ requestTimeout: 5000, headersTimeout: 5000, keepAliveTimeout: 5000 });
    this.#server.maxConnections = 32;
    this.#server.on("request", (request, response) => void this.#answer(request, response));
    this.#server.on("clientError", (_error, socket) => socket.destroy());
  }

  /** Listens and returns "host:port". "unavailable" where the address is taken, "invalid" where it is no address. */
  async listen(): Promise<string> {
    const { host, port } = parseAddress(this.#options.address);
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (cause) =>
        reject(
          new OperationError(
            "unavailable",
            `cannot serve metrics (${describe(cause)}): give another --metrics-address`,
            {
              cause,
              context: { address: this.#options.address },
            },
          ),
        ),
      );
      this.#server.listen(port, host, resolve);
    });
    const bound = this.#server.address() as AddressInfo;
    return bound.family === "IPv6" ? `[${bound.address}]:${bound.port}` : `${bound.address}:${bound.port}`;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    request.resume();
    const path = (request.url ?? "").split("?", 1)[0];
    if (request.method !== "GET" && request.method !== "HEAD") return reply(response, 405, "only GET is served here\n");
    if (path === "/healthz") {
      const reason = this.#options.unhealthy();
      return reply(response, reason === undefined ? 200 : 503, `${reason ?? "ok"}\n`);
    }
    if (path !== "/metrics") return reply(response, 404, "only /healthz and /metrics are served here\n");
    try {
      const text = await this.#options.metrics();
      return reply(response, 200, text, metricsContentType);
    } catch (error) {
      this.#options.log.warn("metrics could not be collected", { operation: "metrics", error });
      return reply(response, 500, "metrics could not be collected\n");
    }
  }
}

function reply(
  response: ServerResponse,
  status: number,
  text: string,
  contentType = "text/plain; charset=utf-8",
): void {
  response.writeHead(status, { "content-type": contentType, "content-length": Buffer.byteLength(text) });
  response.end(text);
}

/** Splits "host:port"; throws "invalid". */
export function parseAddress(address: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(address);
  const port = match === null ? Number.NaN : Number(match[3]);
  if (match === null || port > 65535) {
    throw new OperationError("invalid", "an address is host:port, as in 127.0.0.1:9810", { context: { address } });
  }
  return { host: match[1] ?? match[2], port };
}
