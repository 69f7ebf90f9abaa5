/**
 * Answers of an S3 server: any bytes in the place of status line, headers and body, to each kind of request. Oracle: a
 * result that the answer can mean (a key is only "created" by a 2xx, a range is never longer than asked, keys come in
 * order under their prefix), or a typed error; and no memory for bodies that are only announced.
 * An input is a byte that picks the request, and the answer.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import type { S3Store } from "../../../src/store/s3.ts";
import { storeAt } from "../../store/scripted-s3.ts";
import type { FuzzTarget } from "../target.ts";
import { lateVerdict } from "../verdict.ts";

const KINDS = ["invalid", "not-found", "conflict", "busy", "in-use", "exhausted", "unavailable", "corrupt"] as const;
const RANGE = { offset: 16, length: 64 };
const PREFIX = "v1/";

function answer(status: string, headers: readonly string[], body: string | Buffer): Buffer {
  const bytes = Buffer.from(body as string);
  const lines = [`HTTP/1.1 ${status}`, ...headers, `Content-Length: ${bytes.length}`, "", ""];
  return Buffer.concat([Buffer.from(lines.join("\r\n")), bytes]);
}

function listing(keys: readonly string[], isTruncated: boolean): string {
  const contents = keys.map(
    (key) =>
      `<Contents><Key>${key}</Key><LastModified>2026-11-21T00:00:00.000Z</LastModified><ETag>"a"</ETag><Size>5</Size></Contents>`,
  );
  const next = isTruncated ? "<NextContinuationToken>t</NextContinuationToken>" : "";
  return `<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><KeyCount>${keys.length}</KeyCount><IsTruncated>${isTruncated}</IsTruncated>${next}${contents.join("")}</ListBucketResult>`;
}

function refusal(codeName: string): string {
  return `<?xml version="1.0"?><Error><Code>${codeName}</Code><Message>m</Message><RequestId>r</RequestId></Error>`;
}

const xml = ["Content-Type: application/xml"];
const seeds: readonly [request: number, answer: Buffer][] = [
  [0, answer("200 OK", ['ETag: "x"'], "")],
  [0, answer("412 Precondition Failed", xml, refusal("PreconditionFailed"))],
  [0, answer("409 Conflict", xml, refusal("ConditionalRequestConflict"))],
  [1, answer("200 OK", ['ETag: "x"'], Buffer.alloc(300, 7))],
  [1, answer("404 Not Found", xml, refusal("NoSuchKey"))],
  [1, Buffer.from("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")],
  [1, Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${2 ** 40}\r\n\r\nhello`)],
  [1, Buffer.from("HTTP/1.1 200 OK\r\nContent-Length: 3000000000\r\n\r\nhello")],
  [2, answer("206 Partial Content", ["Content-Range: bytes 16-79/300"], Buffer.alloc(64, 7))],
  [2, answer("416 Range Not Satisfiable", [...xml, "Content-Range: bytes */10"], refusal("InvalidRange"))],
  [2, answer("416 Range Not Satisfiable", [...xml, "Content-Range: bytes */19"], refusal("InvalidRange"))],
  [3, answer("200 OK", xml, listing(["v1/a", "v1/b"], false))],
  [3, answer("200 OK", xml, listing(["v1/a", "v1/b"], true))],
  [4, answer("204 No Content", [], "")],
  [
    5,
    answer(
      "200 OK",
      xml,
      '<?xml version="1.0"?><DeleteResult><Error><Key>v1/a</Key><Code>AccessDenied</Code></Error></DeleteResult>',
    ),
  ],
  [5, answer("503 Slow Down", xml, refusal("SlowDown"))],
];

/** A server that gives every connection the current answer once its request has come whole, and closes it. */
async function startServer(current: () => Buffer): Promise<{ endpoint: string; stop: () => Promise<void> }> {
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    let request = "";
    socket.on("error", () => undefined);
    socket.on("close", () => open.delete(socket));
    socket.on("data", (chunk: Buffer) => {
      request += chunk.toString("latin1");
      const end = request.indexOf("\r\n\r\n");
      const length = Number(/\r\ncontent-length: (\d+)/i.exec(request)?.[1] ?? 0);
      if (end >= 0 && request.length >= end + 4 + length) socket.end(current());
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async stop() {
      for (const socket of open) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

async function s3Answers(): Promise<FuzzTarget> {
  let current: Buffer = Buffer.alloc(0);
  const server = await startServer(() => current);
  const store = storeAt([server.endpoint]);
  return {
    name: "s3-answers",
    seeds: seeds.map(([request, bytes]) => Buffer.concat([Buffer.from([request]), bytes])),
    memoryBytes: 32 * 1024 * 1024,
    async run(input) {
      current = Buffer.from(input.subarray(1));
      const text = current.toString("latin1");
      const requests = [put, get, getRange, list, remove, removeMany];
      return await requests[(input[0] ?? 0) % requests.length](store, text);
    },
    async close() {
      await store.close();
      await server.stop();
    },
  };
}

/** True where some status line of the answer is one of 2xx: informational ones may come before the last. */
function saysSuccess(text: string): boolean {
  return /HTTP\/1\.[01] 2\d\d/.test(text);
}

function put(store: S3Store, text: string): Promise<string> {
  return lateVerdict(
    KINDS,
    () => store.putIfAbsent("v1/a", [Buffer.alloc(70, 1)]),
    (outcome) => {
      if (outcome === "created") assert.ok(saysSuccess(text), "created by an answer that does not say so");
      else assert.match(text, /HTTP\/1\.[01] (412|304)|PreconditionFailed/);
    },
  );
}

function get(store: S3Store, text: string): Promise<string> {
  return lateVerdict(
    KINDS,
    () => store.get("v1/a"),
    (bytes) => {
      if (bytes === undefined) assert.match(text, /NoSuchKey/);
      else assert.ok(saysSuccess(text) && bytes.length <= text.length);
    },
  );
}

function getRange(store: S3Store, text: string): Promise<string> {
  return lateVerdict(
    KINDS,
    () => store.getRange("v1/a", RANGE),
    (found) => {
      if (found === undefined) return assert.match(text, /NoSuchKey/);
      const { bytes, totalBytes } = found;
      assert.ok(bytes.length <= RANGE.length && Number.isSafeInteger(totalBytes) && totalBytes >= 0);
      assert.equal(bytes.length, Math.min(RANGE.length, Math.max(0, totalBytes - RANGE.offset)));
    },
  );
}

function list(store: S3Store, text: string): Promise<string> {
  return lateVerdict(
    KINDS,
    () => store.list(PREFIX),
    ({ objects, next }) => {
      assert.ok(saysSuccess(text));
      let last = "";
      for (const { key, sizeBytes, modifiedMs } of objects) {
        assert.ok(key.startsWith(PREFIX) && key > last, `key ${key}`);
        assert.ok(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0, `size ${sizeBytes}`);
        assert.ok(Number.isFinite(modifiedMs), `time ${modifiedMs}`);
        last = key;
      }
      if (next !== undefined) assert.ok(next >= last);
    },
  );
}

function remove(store: S3Store, text: string): Promise<string> {
  return lateVerdict(
    KINDS,
    () => store.delete(["v1/a"]),
    () => assert.ok(saysSuccess(text)),
  );
}

function removeMany(store: S3Store, text: string): Promise<string> {
  return lateVerdict(
    KINDS,
    () => store.delete(["v1/a", "v1/b"]),
    () => assert.ok(saysSuccess(text)),
  );
}

export const s3Targets = { "s3-answers": s3Answers } as const;
