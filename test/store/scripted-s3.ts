/** An HTTP server on loopback that answers as a test says: for what no well-behaved S3 server can be made to do. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { once } from "node:events";
import type { Clock } from "../../src/base/clock.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { S3Store, type S3StoreOptions } from "../../src/store/s3.ts";

export type Answer = (request: IncomingMessage, response: ServerResponse, body: Buffer) => void | Promise<void>;

export interface ScriptedS3 {
  endpoint: string;
  /** Method and URL of every request that came whole. */
  requests: string[];
  /** Connections opened so far. */
  connections(): number;
  /** Connections that are open now. */
  openConnections(): number;
  stop(): Promise<void>;
}

/** `answer` is called once a request's body has come, or at its headers where `early` is set. */
export async function startScriptedS3(answer: Answer, options: { early?: boolean } = {}): Promise<ScriptedS3> {
  const requests: string[] = [];
  let connections = 0;
  let closed = 0;
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    if (options.early === true) void answer(request, response, Buffer.alloc(0));
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("error", () => undefined);
    request.on("end", () => {
      requests.push(`${request.method} ${request.url}`);
      if (options.early !== true) void answer(request, response, Buffer.concat(chunks));
    });
  });
  server.on("connection", (socket) => {
    connections += 1;
    socket.on("close", () => (closed += 1));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    connections: () => connections,
    openConnections: () => connections - closed,
    async stop() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

export function s3Refusal(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { "content-type": "application/xml", "x-amz-request-id": "REQ123" });
  response.end(`<Error><Code>${code}</Code><Message>secret-in-message test-secret</Message></Error>`);
}

export function storeAt(
  endpoints: readonly string[],
  options: Partial<S3StoreOptions> = {},
  clock: Clock = systemClock,
): S3Store {
  return new S3Store(
    {
      bucket: "bucket",
      prefix: "",
      endpoints,
      region: "us-east-1",
      forcePathStyle: true,
      credentials: { kind: "static", accessKeyId: "test-key", secretAccessKey: "test-secret" },
      ...options,
    },
    clock,
  );
}
