/**
 * An S3 server in memory on loopback, one MemoryStore a bucket. Buckets of certain names misbehave as the worst of servers
 * do: they answer errors that repeat everything the request held, its headers included. It keeps what it was sent.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { MemoryStore } from "../../src/store/memory.ts";

export const misbehaving = ["denied-bucket", "failing-bucket", "garbled-bucket", "silent-bucket"] as const;

export class MemoryS3 {
  readonly buckets = new Map<string, MemoryStore>();
  /** Method, URL and headers of every request. */
  readonly requests: string[] = [];
  readonly #server = createServer((request, response) => void this.#receive(request, response));

  async start(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }

  /** All keys and contents. */
  async everything(): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (const store of this.buckets.values()) {
      for (let after: string | undefined; ;) {
        const page = await store.list("", { limit: 1000, ...(after === undefined ? {} : { after }) });
        for (const { key } of page.objects) parts.push(Buffer.from(key), (await store.get(key)) ?? Buffer.alloc(0));
        if (page.next === undefined) break;
        after = page.next;
      }
    }
    return Buffer.concat(parts);
  }

  async #receive(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    request.on("error", () => {});
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const seen = JSON.stringify([request.method, request.url, request.headers]);
    this.requests.push(seen);
    const url = new URL(request.url ?? "/", "http://s3");
    const [, bucket = "", ...rest] = decodeURIComponent(url.pathname).split("/");
    switch (bucket) {
      case "denied-bucket":
        return refuse(response, 403, `<Error><Code>AccessDenied</Code><Message>${escape(seen)}</Message></Error>`);
      case "failing-bucket":
        return refuse(response, 500, `<Error><Code>InternalError</Code><Message>${escape(seen)}</Message></Error>`);
      case "garbled-bucket":
        return refuse(response, 200, seen);
      case "silent-bucket":
        request.socket.destroy();
        return;
      default:
        await this.#answer({ bucket, key: rest.join("/"), url, request, body: Buffer.concat(chunks) }, response);
    }
  }

  async #answer(
    asked: { bucket: string; key: string; url: URL; request: IncomingMessage; body: Buffer },
    response: ServerResponse,
  ): Promise<void> {
    const { bucket, key, url, request, body } = asked;
    const store = this.buckets.get(bucket) ?? new MemoryStore();
    this.buckets.set(bucket, store);
    if (request.method === "PUT") {
      const outcome = await store.putIfAbsent(key, [body]);
      if (outcome === "created") response.writeHead(200, { etag: '"x"' }).end();
      else refuse(response, 412, "<Error><Code>PreconditionFailed</Code></Error>");
    } else if (request.method === "DELETE") {
      await store.delete([key]);
      response.writeHead(204).end();
    } else if (request.method === "POST") {
      const keys = [...body.toString().matchAll(/<Key>([^<]*)<\/Key>/g)].map(([, name]) => name);
      await store.delete(keys);
      refuse(response, 200, "<DeleteResult></DeleteResult>");
    } else if (key === "") await list(store, url, response);
    else await get(store, key, request, response);
  }
}

async function get(store: MemoryStore, key: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const whole = await store.get(key);
  if (whole === undefined) return refuse(response, 404, "<Error><Code>NoSuchKey</Code></Error>");
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
  if (first === undefined) {
    response.writeHead(200, { "content-length": whole.length, etag: '"x"' }).end(whole);
    return;
  }
  if (Number(first) >= whole.length) return refuse(response, 416, "<Error><Code>InvalidRange</Code></Error>");
  const part = whole.subarray(Number(first), Number(last) + 1);
  const range = `bytes ${first}-${Number(first) + part.length - 1}/${whole.length}`;
  response.writeHead(206, { "content-length": part.length, "content-range": range, etag: '"x"' }).end(part);
}

async function list(store: MemoryStore, url: URL, response: ServerResponse): Promise<void> {
  const query = (name: string): string | undefined => url.searchParams.get(name) ?? undefined;
  const [after, delimiter] = [query("continuation-token") ?? query("start-after"), query("delimiter")];
  const page = await store.list(query("prefix") ?? "", {
    limit: Number(query("max-keys") ?? 1000),
    ...(after === undefined ? {} : { after }),
    ...(delimiter === undefined ? {} : { delimiter: "/" }),
  });
  const objects = page.objects.map(
    ({ key, sizeBytes }) =>
      `<Contents><Key>${key}</Key><Size>${sizeBytes}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>`,
  );
  const prefixes = page.prefixes.map((prefix) => `<CommonPrefixes><Prefix>${prefix}</Prefix></CommonPrefixes>`);
  const next = page.next === undefined ? "" : `<NextContinuationToken>${page.next}</NextContinuationToken>`;
  const truncated = `<IsTruncated>${String(page.next !== undefined)}</IsTruncated>`;
  refuse(
    response,
    200,
    `<ListBucketResult>${truncated}${next}${objects.join("")}${prefixes.join("")}</ListBucketResult>`,
  );
}

function refuse(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { "content-type": "application/xml", "x-amz-request-id": "R1" }).end(text);
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
