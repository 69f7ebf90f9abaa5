/**
 * An HTTP proxy before a real S3 server that treats conditional puts badly: the connection is cut after the server has
 * applied one and before its reply is passed on, or the request is applied long after its sender was cut off, or the
 * answer is 409. Everything else passes. Requests keep their Host header, so that signatures hold.
 */
import { once } from "node:events";
import { Agent, createServer, request as httpRequest } from "node:http";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

export type Fate = "pass" | "lose-reply" | "late" | "conflict";

export interface UnreliableProxy {
  /** http://127.0.0.1:port */
  endpoint: string;
  /** Conditional puts by what became of them. */
  readonly counts: Readonly<Record<Fate, number>>;
  stop(): Promise<void>;
}

export interface ProxyOptions {
  /** Port of the server on 127.0.0.1. */
  port: number;
  /** Decides about each conditional put. */
  fateOf: () => Fate;
  lateMs: () => number;
}

const CONFLICT = "<Error><Code>ConditionalRequestConflict</Code><Message>again</Message></Error>";

/** Starts on a free port. */
export async function startUnreliableProxy(options: ProxyOptions): Promise<UnreliableProxy> {
  const counts: Record<Fate, number> = { pass: 0, "lose-reply": 0, late: 0, conflict: 0 };
  const agent = new Agent({ keepAlive: true, maxSockets: 64 });
  const underWay = new Set<Promise<void>>();
  const stopping = new AbortController();

  const forward = async (incoming: IncomingMessage, body: Buffer): Promise<IncomingMessage> => {
    const { method, url, headers } = incoming;
    const outgoing = httpRequest({ host: "127.0.0.1", port: options.port, method, path: url, headers, agent });
    outgoing.end(body);
    const [answer] = (await once(outgoing, "response")) as [IncomingMessage];
    return answer;
  };

  const answer = async (incoming: IncomingMessage, response: ServerResponse): Promise<void> => {
    const body = await buffer(incoming);
    const isConditional = incoming.method === "PUT" && incoming.headers["if-none-match"] === "*";
    const fate = isConditional ? options.fateOf() : "pass";
    if (isConditional) counts[fate] += 1;
    if (fate === "conflict") {
      response.writeHead(409, { "content-type": "application/xml" }).end(CONFLICT);
      return;
    }
    if (fate === "late") {
      response.destroy();
      await sleep(options.lateMs(), undefined, { signal: stopping.signal });
    }
    const answered = await forward(incoming, body);
    if (fate === "pass") {
      response.writeHead(answered.statusCode ?? 502, answered.headers);
      answered.pipe(response);
      await once(response, "close");
    } else {
      await buffer(answered);
      response.destroy();
    }
  };

  const server = createServer((incoming, response) => {
    const work: Promise<void> = answer(incoming, response)
      .catch(() => void response.destroy())
      .finally(() => underWay.delete(work));
    underWay.add(work);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    counts,
    async stop() {
      stopping.abort();
      server.close();
      server.closeAllConnections();
      await Promise.all(underWay);
      agent.destroy();
    },
  };
}
