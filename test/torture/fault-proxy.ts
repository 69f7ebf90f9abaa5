/**
 * A way to an S3 server on which requests go wrong in the ways in which they do: refused, slow, answered with an error,
 * applied with the answer lost, answered with bodies that break off or rot, and refused because of keys or clock. The
 * requests themselves pass unchanged, so that signatures hold.
 * A body of one object goes wrong at most every second time: damage on the way, not damage of the object.
 */
import { once } from "node:events";
import { createServer, request, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { monotonicMs } from "./figures.ts";
import { pause } from "./laboratory.ts";

export const wayFaults = [
  "refused",
  "slow",
  "errors",
  "lost replies",
  "cut bodies",
  "rotten bodies",
  "revoked keys",
] as const;
export type WayFault = (typeof wayFaults)[number];

const allowedSkewMs = 15 * 60_000;

export class FaultProxy {
  /** What goes wrong at present. */
  fault: WayFault | undefined;
  /** How often each went wrong, and requests in all. */
  readonly counts = new Map<string, number>();
  readonly #targetPort: number;
  readonly #random: SeededRandom;
  readonly #server: Server;
  /** The right time less the monotonic one: the S3 server's clock is nobody's to set. */
  readonly #clockOffsetMs = Date.now() - monotonicMs();
  readonly #spoilt = new Set<string>();

  constructor(targetPort: number, random: SeededRandom) {
    this.#targetPort = targetPort;
    this.#random = random;
    this.#server = createServer({ keepAliveTimeout: 60_000 }, (incoming, answer) => {
      this.#handle(incoming, answer).catch(() => answer.destroy());
    });
  }

  async listen(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    await once(this.#server, "close");
  }

  async #handle(incoming: IncomingMessage, answer: ServerResponse): Promise<void> {
    this.#count("requests");
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    if (this.#isSkewed(incoming)) {
      refuse(answer, 403, "RequestTimeTooSkewed");
      return;
    }
    const { fault } = this;
    const isStruck = fault !== undefined && this.#random.below(2) === 0;
    if (fault === "refused") {
      this.#count(fault);
      answer.destroy();
    } else if (fault === "revoked keys") {
      this.#count(fault);
      refuse(answer, 403, "InvalidAccessKeyId");
    } else if (fault === "errors" && isStruck) {
      this.#count(fault);
      const errors = [
        [503, "SlowDown"],
        [500, "InternalError"],
        [409, "ConditionalRequestConflict"],
      ] as const;
      const [status, code] = errors[this.#random.below(incoming.method === "PUT" ? 3 : 2)];
      refuse(answer, status, code);
    } else {
      if (fault === "slow") {
        this.#count(fault);
        await pause(this.#random.fraction() * 1500);
      }
      await this.#forward(incoming, body, answer, isStruck ? fault : undefined);
    }
  }

  async #forward(
    incoming: IncomingMessage,
    body: Buffer,
    answer: ServerResponse,
    fault: WayFault | undefined,
  ): Promise<void> {
    const { method, url: path, rawHeaders } = incoming;
    const headers = pairs(rawHeaders);
    const outgoing = request({ port: this.#targetPort, host: "127.0.0.1", method, path, headers, agent: false });
    outgoing.end(body);
    const [reply] = (await once(outgoing, "response")) as [IncomingMessage];
    const chunks: Buffer[] = [];
    for await (const chunk of reply) chunks.push(chunk as Buffer);
    const found = Buffer.concat(chunks);
    if (fault === "lost replies") {
      this.#count(fault);
      answer.destroy();
      return;
    }
    const isObject = method === "GET" && !(path ?? "").includes("list-type") && found.length > 0;
    const isSpoilt = isObject && (fault === "cut bodies" || fault === "rotten bodies") && this.#mayBeSpoilt(path ?? "");
    answer.writeHead(reply.statusCode ?? 500, pairs(reply.rawHeaders));
    if (!isSpoilt) {
      answer.end(found);
      return;
    }
    this.#count(fault ?? "");
    if (fault === "rotten bodies") {
      const bit = this.#random.below(found.length * 8);
      found[bit >>> 3] ^= 1 << (bit & 7);
      answer.end(found);
    } else {
      answer.write(found.subarray(0, this.#random.below(found.length)), () => answer.destroy());
    }
  }

  #mayBeSpoilt(path: string): boolean {
    if (this.#spoilt.delete(path)) return false;
    this.#spoilt.add(path);
    return true;
  }

  #isSkewed(incoming: IncomingMessage): boolean {
    const text = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(String(incoming.headers["x-amz-date"]));
    if (text === null) return false;
    const [year, month, day, hour, minute, second] = text.slice(1).map(Number);
    const signedMs = Date.UTC(year, month - 1, day, hour, minute, second);
    if (Math.abs(signedMs - this.#clockOffsetMs - monotonicMs()) <= allowedSkewMs) return false;
    this.#count("refused because of the clock");
    return true;
  }

  #count(name: string): void {
    this.counts.set(name, (this.counts.get(name) ?? 0) + 1);
  }
}

/** Names and values in turns, as a record; a name that stands twice is not to be expected here. */
function pairs(raw: readonly string[]): Record<string, string> {
  const entries: [string, string][] = [];
  for (let index = 0; index < raw.length; index += 2) entries.push([raw[index], raw[index + 1]]);
  return Object.fromEntries(entries);
}

function refuse(answer: ServerResponse, status: number, code: string): void {
  const body = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>${code}</Message></Error>`;
  answer.writeHead(status, { "content-type": "application/xml", "content-length": body.length });
  answer.end(body);
}
