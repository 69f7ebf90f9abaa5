/**
 * The S3 store against answers that well-behaved servers do not give: every error in words for an operator, bodies
 * that lie, servers that stall or answer early, and what stands on the wire.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { test, type TestContext } from "node:test";
import { describe as describeError, isKind, type ErrorKind, OperationError } from "../../src/base/errors.ts";
import type { S3Store, S3StoreOptions } from "../../src/store/s3.ts";
import { READ_CONNECTIONS } from "../../src/store/s3.ts";
import { HurriedClock } from "../suites/hurried-clock.ts";
import { type Answer, s3Refusal, type ScriptedS3, startScriptedS3, storeAt } from "./scripted-s3.ts";

async function scripted(
  t: TestContext,
  answer: Answer,
  options: Partial<S3StoreOptions> & { early?: boolean } = {},
): Promise<{ store: S3Store; server: ScriptedS3 }> {
  const { early = false, ...rest } = options;
  const server = await startScriptedS3(answer, { early });
  const store = storeAt([server.endpoint], rest);
  t.after(async () => {
    await store.close();
    await server.stop();
  });
  return { store, server };
}

async function failureOf(request: Promise<unknown>): Promise<OperationError> {
  try {
    await request;
  } catch (error) {
    assert.ok(error instanceof OperationError, describeError(error));
    return error;
  }
  assert.fail("the request did not fail");
}

const body = Buffer.alloc(5000, 7);

const REFUSALS: [status: number, code: string, kind: ErrorKind, words: RegExp][] = [
  [404, "NoSuchBucket", "not-found", /create it/],
  [403, "AccessDenied", "invalid", /s3:PutObject/],
  [403, "InvalidAccessKeyId", "invalid", /does not know this access key/],
  [403, "SignatureDoesNotMatch", "invalid", /check the access key and the secret/],
  [403, "RequestTimeTooSkewed", "unavailable", /set this machine's clock/],
  [400, "ExpiredToken", "invalid", /renew/],
  [301, "PermanentRedirect", "invalid", /region/],
  [400, "AuthorizationHeaderMalformed", "invalid", /region/],
  [409, "ConditionalRequestConflict", "unavailable", /another request/],
  [501, "NotImplemented", "invalid", /no conditional writes .* use a store that has them/],
  [503, "SlowDown", "unavailable", /fewer requests/],
  [429, "TooManyRequests", "unavailable", /fewer requests/],
  [500, "InternalError", "unavailable", /fault/],
  [502, "BadGateway", "unavailable", /fault/],
  [507, "InsufficientStorage", "unavailable", /full/],
  [400, "RequestTimeout", "unavailable", /in time/],
  [400, "EntityTooLarge", "invalid", /segment size/],
  [400, "InvalidArgument", "invalid", /refuses/],
  [404, "SomethingElse", "not-found", /does not exist/],
];

test("a refusal says what is wrong and what to do, and repeats nothing the server wrote", async (t) => {
  let current: [number, string] = [0, ""];
  const { store } = await scripted(t, (_request, response) => s3Refusal(response, ...current));
  for (const [status, code, kind, words] of REFUSALS) {
    current = [status, code];
    const error = await failureOf(store.putIfAbsent("some/key", [body]));
    assert.equal(error.kind, kind, `${status} ${code}: ${error.message}`);
    assert.match(error.message, words);
    assert.match(error.message, new RegExp(`code=${code} status=${status} bucket=bucket key=some/key`));
    assert.doesNotMatch(error.message + JSON.stringify(error.context), /secret-in-message|test-secret|test-key/);
  }
});

test("no answer but NoSuchKey makes a get answer that there is no object", async (t) => {
  let current: [number, string] = [0, ""];
  const { store } = await scripted(t, (_request, response) => s3Refusal(response, ...current));
  current = [404, "NoSuchKey"];
  assert.equal(await store.get("a"), undefined);
  for (const refusal of [
    [404, "NoSuchBucket"],
    [404, "NotFound"],
    [404, ""],
    [403, "AccessDenied"],
  ] as const) {
    current = [...refusal];
    await failureOf(store.get("a"));
  }
  const bare = await scripted(t, (_request, response) => void response.writeHead(404).end());
  await failureOf(bare.store.get("a"));
  const proxy = await scripted(t, (_request, response) => void response.writeHead(404).end("<html>not here"));
  await failureOf(proxy.store.get("a"));
});

test("412, and 304 of old servers, mean that the object exists", async (t) => {
  let status = 412;
  const { store } = await scripted(t, (_request, response) => {
    if (status === 412) s3Refusal(response, 412, "PreconditionFailed");
    else response.writeHead(304).end();
  });
  assert.equal(await store.putIfAbsent("a", [body]), "exists");
  status = 304;
  assert.equal(await store.putIfAbsent("a", [body]), "exists");
});

test("credentials that worked and are refused later are waited for", async (t) => {
  let isRotated = false;
  const { store } = await scripted(t, (request, response) => {
    if (isRotated || request.method === "GET") s3Refusal(response, 403, "InvalidAccessKeyId");
    else response.writeHead(200, { etag: '"x"' }).end();
  });
  await store.putIfAbsent("a", [body]);
  isRotated = true;
  assert.equal((await failureOf(store.putIfAbsent("b", [body]))).kind, "unavailable");
  assert.equal((await failureOf(store.get("b"))).kind, "invalid");
});

test("a put sends its parts as they are, conditionally, neither hashed nor chunked, and no request is repeated", async (t) => {
  const warnings = t.mock.method(console, "warn", () => undefined);
  const seen: { headers: Record<string, unknown>; body: Buffer }[] = [];
  const { store, server } = await scripted(t, (request, response, received) => {
    seen.push({ headers: request.headers, body: received });
    if (seen.length === 1) response.writeHead(200, { etag: '"x"' }).end();
    else s3Refusal(response, 500, "InternalError");
  });
  const parts = [body.subarray(0, 64), body.subarray(64), Buffer.alloc(2_000_000, 1)];
  await store.putIfAbsent("v1/a", parts);
  await failureOf(store.putIfAbsent("v1/b", parts));
  assert.deepEqual(server.requests, ["PUT /bucket/v1/a?x-id=PutObject", "PUT /bucket/v1/b?x-id=PutObject"]);
  assert.equal(warnings.mock.callCount(), 0);
  const { headers, body: received } = seen[0];
  assert.ok(received.equals(Buffer.concat(parts)));
  assert.equal(headers["if-none-match"], "*");
  assert.equal(headers["x-amz-content-sha256"], "UNSIGNED-PAYLOAD");
  assert.equal(headers["content-length"], String(received.length));
  for (const name of [
    "transfer-encoding",
    "content-encoding",
    "expect",
    "x-amz-trailer",
    "x-amz-sdk-checksum-algorithm",
  ]) {
    assert.equal(headers[name], undefined, name);
  }
  assert.deepEqual(
    Object.keys(headers).filter((name) => name.startsWith("x-amz-checksum")),
    [],
  );
});

test("a batch delete carries an MD5 and no newer checksum", async (t) => {
  let isRight = false;
  const { store } = await scripted(t, (request, response, received) => {
    const md5 = createHash("md5").update(received).digest("base64");
    isRight = request.headers["content-md5"] === md5 && request.headers["x-amz-checksum-crc32"] === undefined;
    response.writeHead(200).end("<DeleteResult></DeleteResult>");
  });
  await store.delete(["a", "b"]);
  assert.ok(isRight);
});

test("a batch delete fails where the server says that one key could not be deleted", async (t) => {
  let code = "AccessDenied";
  const { store } = await scripted(t, (_request, response) => {
    response.end(`<DeleteResult><Error><Key>b</Key><Code>${code}</Code></Error></DeleteResult>`);
  });
  assert.equal((await failureOf(store.delete(["a", "b"]))).kind, "invalid");
  code = "SlowDown";
  assert.equal((await failureOf(store.delete(["a", "b"]))).kind, "unavailable");
  code = "NoSuchKey";
  await store.delete(["a", "b"]);
});

function rangeAnswer(response: ServerResponse, status: number, contentRange: string | undefined, bytes: number): void {
  const headers = { "content-length": bytes, ...(contentRange === undefined ? {} : { "content-range": contentRange }) };
  response.writeHead(status, headers).end(Buffer.alloc(bytes));
}

test("a range that is shorter, longer, elsewhere or whole is corrupt, never an answer", async (t) => {
  const wrong: [number, string | undefined, number][] = [
    [206, "bytes 100-199/1000", 99],
    [206, "bytes 100-198/1000", 99],
    [206, "bytes 100-200/1000", 101],
    [206, "bytes 101-200/1000", 100],
    [206, "bytes 0-99/1000", 100],
    [206, "bytes 100-199/150", 100],
    [206, undefined, 100],
    [206, "nonsense", 100],
    [200, undefined, 1000],
    [416, "bytes */150", 0],
    [416, "bytes */101", 0],
  ];
  let current = wrong[0];
  const { store } = await scripted(t, (_request, response) => rangeAnswer(response, ...current));
  for (const answer of wrong) {
    current = answer;
    const error = await failureOf(store.getRange("a", { offset: 100, length: 100 }));
    assert.equal(error.kind, "corrupt", JSON.stringify(answer));
  }
  current = [206, "bytes 100-149/150", 50];
  const atEnd = await store.getRange("a", { offset: 100, length: 100 });
  assert.deepEqual(atEnd, { bytes: Buffer.alloc(50), totalBytes: 150 });
  current = [200, undefined, 60];
  const whole = await store.getRange("a", { offset: 0, length: 100 });
  assert.deepEqual(whole, { bytes: Buffer.alloc(60), totalBytes: 60 });
  current = [416, "bytes */100", 0];
  const behind = await store.getRange("a", { offset: 100, length: 100 });
  assert.deepEqual(behind, { bytes: Buffer.alloc(0), totalBytes: 100 });
});

test("a body of unannounced length must still be as long as its range", async (t) => {
  let sent = 100;
  const { store } = await scripted(t, (_request, response) => {
    response.writeHead(206, { "content-range": "bytes 100-199/1000" });
    response.write(Buffer.alloc(sent), () => response.end());
  });
  const range = { offset: 100, length: 100 };
  assert.equal((await store.getRange("a", range))?.bytes.length, 100);
  for (sent of [1, 99, 101, 5000]) assert.equal((await failureOf(store.getRange("a", range))).kind, "corrupt");
});

test("a body that breaks off is unavailable, never a short answer", async (t) => {
  const { store } = await scripted(t, (_request, response) => {
    response.writeHead(200, { "content-length": 1000 });
    response.write(Buffer.alloc(999), () => response.destroy());
  });
  for (let round = 0; round < 5; round += 1) assert.equal((await failureOf(store.get("a"))).kind, "unavailable");
});

test("a server that accepts and never answers, or stops in the midst of a body, is given up", async (t) => {
  const silent = await scripted(t, () => undefined, { requestTimeoutMs: 50 });
  for (const request of [
    () => silent.store.putIfAbsent("a", [body]),
    () => silent.store.get("a"),
    () => silent.store.list(""),
    () => silent.store.delete(["a"]),
  ]) {
    const error = await failureOf(request());
    assert.equal(error.kind, "unavailable");
    assert.match(error.message, /did not answer in time/);
  }
  const stalling = await scripted(
    t,
    (_request, response) => {
      response.writeHead(200, { "content-length": 1000 });
      response.write(Buffer.alloc(500));
    },
    { requestTimeoutMs: 50 },
  );
  assert.match((await failureOf(stalling.store.get("a"))).message, /did not answer in time/);
});

test("a server that reads nothing of a large body is given up", async (t) => {
  const { store } = await scripted(t, (request) => void request.pause(), { requestTimeoutMs: 50, early: true });
  const error = await failureOf(store.putIfAbsent("a", [Buffer.alloc(64 * 1024 * 1024)]));
  assert.equal(error.kind, "unavailable");
});

test("a server that needs longer than the time-out is given more and more time, and is served by in the end", async (t) => {
  const { store, server } = await scripted(
    t,
    (request, response) => {
      if (request.method === "GET") s3Refusal(response, 404, "NoSuchKey");
      else setTimeout(() => response.writeHead(200, { etag: '"x"' }).end(), 300);
    },
    { requestTimeoutMs: 100 },
  );
  let attempts = 1;
  for (; attempts < 10; attempts += 1) {
    const outcome = await store.putIfAbsent("a", [body]).catch((error: unknown) => error);
    if (outcome === "created") break;
    assert.ok(isKind(outcome, "unavailable"));
    assert.equal(await store.get("a"), undefined);
  }
  assert.ok(attempts <= 4, `attempts: ${attempts}`);
  assert.equal(server.requests.filter((request) => request.startsWith("PUT")).length, attempts);
});

test("an aborted request ends at once with unavailable, and its connection with it", async (t) => {
  const abort = new AbortController();
  const { store } = await scripted(t, () => abort.abort());
  const error = await failureOf(store.putIfAbsent("a", [body], { signal: abort.signal }));
  assert.equal(error.kind, "unavailable");
  assert.match(error.message, /given up/);
});

test("an answer before the whole body was sent settles the put and closes the connection", async (t) => {
  const unread: IncomingMessage[] = [];
  const { store, server } = await scripted(
    t,
    (request) => {
      unread.push(request.pause());
      // By hand, because Node's server would read the rest, or close the connection itself.
      request.socket.write("HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n");
    },
    { early: true },
  );
  const large = Buffer.alloc(32 * 1024 * 1024);
  assert.equal(await store.putIfAbsent("a", [large]), "exists");
  assert.equal(await store.putIfAbsent("b", [large]), "exists");
  for (const request of unread) request.resume();
  while (server.openConnections() > 0) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(server.connections(), 2);
});

test("requests one after another use one connection for reads and one for writes", async (t) => {
  const { store, server } = await scripted(t, (request, response) => {
    if (request.method === "GET") s3Refusal(response, 404, "NoSuchKey");
    else if (request.url?.includes("/b") === true) s3Refusal(response, 412, "PreconditionFailed");
    else response.writeHead(200, { etag: '"x"' }).end();
  });
  for (let round = 0; round < 10; round += 1) {
    await store.putIfAbsent("a", [body]);
    await store.putIfAbsent("b", [Buffer.alloc(1_000_000)]);
    await store.get("a");
  }
  assert.equal(server.connections(), 2);
});

test("uploads that hold all their connections leave sixteen to reads", async (t) => {
  const held: ServerResponse[] = [];
  const { store, server } = await scripted(
    t,
    (request, response) => {
      if (request.method === "PUT") held.push(response);
      else s3Refusal(response, 404, "NoSuchKey");
    },
    { maxConnections: READ_CONNECTIONS + 3 },
  );
  const uploads = Array.from({ length: 10 }, (_, index) => store.putIfAbsent(`put/${index}`, [body]));
  await Promise.all(Array.from({ length: 40 }, () => store.get("a")));
  while (held.length < 3) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(held.length, 3);
  assert.ok(server.connections() <= READ_CONNECTIONS + 3);
  const settled = Promise.allSettled(uploads);
  while (server.requests.filter((request) => request.startsWith("PUT")).length < 10 || held.length > 0) {
    held.shift()?.writeHead(200, { etag: '"x"' }).end();
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual(
    (await settled).map((result) => result.status),
    Array.from({ length: 10 }, () => "fulfilled"),
  );
});

test("several endpoints are used in turn, and one that fails is left alone", async (t) => {
  const answers = (_request: unknown, response: ServerResponse): void => s3Refusal(response, 404, "NoSuchKey");
  const good = await Promise.all([startScriptedS3(answers), startScriptedS3(answers)]);
  const bad = await startScriptedS3((_request, response) => s3Refusal(response, 503, "ServiceUnavailable"));
  const store = storeAt([good[0].endpoint, bad.endpoint, good[1].endpoint], {}, new HurriedClock());
  t.after(async () => {
    await store.close();
    for (const server of [...good, bad]) await server.stop();
  });
  let failures = 0;
  for (let round = 0; round < 31; round += 1) {
    await store.get("a").catch(() => (failures += 1));
  }
  assert.equal(failures, 1);
  assert.equal(bad.requests.length, 1);
  assert.deepEqual(
    good.map((server) => server.requests.length),
    [15, 15],
  );
});

test("a store that does not list in order, or not behind a key, is refused", async (t) => {
  const entry = (key: string): string =>
    `<Contents><Key>${key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>`;
  let keys = ["b", "a"];
  const { store } = await scripted(t, (_request, response) => {
    response.end(`<ListBucketResult><IsTruncated>false</IsTruncated>${keys.map(entry).join("")}</ListBucketResult>`);
  });
  assert.equal((await failureOf(store.list(""))).kind, "invalid");
  keys = ["a", "b"];
  assert.equal((await store.list("")).objects.length, 2);
  assert.equal((await failureOf(store.list("", { after: "a" }))).kind, "invalid");
});

test("empty pages of a listing are followed to its end", async (t) => {
  let pages = 0;
  const { store } = await scripted(t, (_request, response) => {
    pages += 1;
    const more = `<IsTruncated>true</IsTruncated><NextContinuationToken>t${pages}</NextContinuationToken>`;
    const last =
      "<IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>";
    response.end(`<ListBucketResult>${pages < 4 ? more : last}</ListBucketResult>`);
  });
  const page = await store.list("");
  assert.deepEqual([page.objects.map((object) => object.key), page.next, pages], [["a"], undefined, 4]);
});
