/**
 * An HTTP proxy before a real S3 server that treats requests badly: the connection is cut after the server has applied one
 * and before its reply is passed on, or the request is applied long after its sender was cut off, or the answer is 409
 * or 500 and nothing has happened, or there is no answer, ever. Requests keep their Host header, so that signatures hold.
 */
import { once } from "node:events";
import { Agent, createServer, request as httpRequest } from "node:http";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

export type Fate = "pass" | "lose-reply" | "late" | "conflict" | "refuse" | "cut" | "hang";

export interface UnreliableProxy {
  /** http://127.0.0.1:port */
  endpoint: string;
  /** Requests by what became of them. */
  readonly counts: Readonly<Record<Fate, number>>;
  stop(): Promise<void>;
}

export interface ProxyOptions {
  /** Port of the server on 127.0.0.1. */
  port: number;
  /** Decides about each request; those for which it says nothing pass and are not counted. */
  fateOf: (request: { isConditionalPut: boolean }) => Fate | undefined;
  lateMs?: () => number;
}

const answers = {
  conflict: { status: 409, code: "ConditionalRequestConflict" },
  refuse: { status: 500, code: "InternalError" },
} as const;

/** Starts on a free port. */
export async function startUnreliableProxy(options: ProxyOptions): Promise<UnreliableProxy> {
  const counts: Record<Fate, number> = { pass: 0, "lose-reply": 0, late: 0, conflict: 0, refuse: 0, cut: 0, hang: 0 };
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
    const isConditionalPut = incoming.method === "PUT" && incoming.headers["if-none-match"] === "*";
    const chosen = options.fateOf({ isConditionalPut });
    if (chosen !== undefined) counts[chosen] += 1;
    const fate = chosen ?? "pass";
    if (fate === "conflict" || fate === "refuse") {
      const { status, code } = answers[fate];
      response.writeHead(status, { "content-type": "application/xml" });
      response.end(`<Error><Code>${code}</Code><Message>again</Message></Error>`);
      return;
    }
    if (fate === "hang") return;
    if (fate === "cut") {
      response.destroy();
      return;
    }
    if (fate === "late") {
      response.destroy();
      await sleep(options.lateMs?.() ?? 0, undefined, { signal: stopping.signal });
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
