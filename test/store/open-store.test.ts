/** Stores opened by URL: what is accepted, what is refused, and what a wrong setting says. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { systemRandom } from "../../src/base/system-random.ts";
import type { StoreRequest } from "../../src/store/measured.ts";
import { openStore, probeStoreWays, type StoreParts, type StoreSettings } from "../../src/store/open-store.ts";
import { type S3Server, startS3Server } from "../suites/s3-server.ts";
import { startScriptedS3 } from "./scripted-s3.ts";

const parts: StoreParts = { clock: systemClock, random: systemRandom, log: nullLog, limits: { maxAttempts: 2 } };

async function temporaryDirectory(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-open-"));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

function settingsOf(server: S3Server, changes: Partial<StoreSettings> = {}): StoreSettings {
  const { accessKeyId, secretAccessKey } = server;
  return {
    url: `s3://${server.bucket}/some/prefix`,
    endpoints: [server.endpoint],
    credentials: { kind: "static", accessKeyId, secretAccessKey },
    ...changes,
  };
}

test("a URL names its store, and the store its location", async (t) => {
  const directory = await temporaryDirectory(t);
  const locations = [
    ["memory:", "memory:"],
    [`file://${directory}/`, `file://${directory}`],
    ["s3://my-bucket", "s3://my-bucket"],
    ["s3://my-bucket/", "s3://my-bucket"],
    ["s3://my.bucket/a/b/", "s3://my.bucket/a/b"],
  ];
  for (const [url, location] of locations) {
    const store = openStore({ url }, parts);
    assert.equal(store.location, location);
    await store.close();
  }
});

test("a URL that is no store's is refused, and not repeated", () => {
  const wrong = [
    "",
    "bucket",
    "http://bucket",
    "s3://",
    "s3:///prefix",
    "s3://bucket/a b",
    "s3://bucket/a//b",
    "s3://key:hunter2@bucket/prefix",
    "s3://bucket?secret=hunter2",
    "s3://bucket#x",
    "file://host/path",
    "file:///",
    "file:relative",
  ];
  for (const url of wrong) {
    assert.throws(
      () => openStore({ url }, parts),
      (error) =>
        isKind(error, "invalid") && !error.message.includes("hunter2") && error.message.includes("s3://bucket"),
      url,
    );
  }
});

test("an endpoint that is no plain http or https URL is refused, and not repeated", () => {
  for (const endpoint of ["s3.example.com", "ftp://host", "https://u:hunter2@host", "https://host?x=hunter2", ""]) {
    assert.throws(
      () => openStore({ url: "s3://bucket", endpoints: [endpoint] }, parts),
      (error) => isKind(error, "invalid") && !error.message.includes("hunter2"),
      endpoint,
    );
  }
});

test("a CA file that is missing is refused at once", () => {
  assert.throws(
    () => openStore({ url: "s3://bucket", caFile: "/nonexistent/ca.pem" }, parts),
    (error) => isKind(error, "invalid") && error.message.includes("CA file"),
  );
});

test("every request that reaches the store is observed, with its bytes, those that failed too", async (t) => {
  const requests: StoreRequest[] = [];
  let refusals = 1;
  const server = await startScriptedS3((request, response) => {
    if (refusals-- > 0) response.writeHead(503).end();
    else response.writeHead(200, { etag: '"x"', "content-length": request.method === "GET" ? 4 : 0 }).end("body");
  });
  const settings: StoreSettings = {
    url: "s3://bucket",
    endpoints: [server.endpoint],
    credentials: { kind: "static", accessKeyId: "a", secretAccessKey: "b" },
  };
  const store = openStore(settings, {
    ...parts,
    random: new SeededRandom(1),
    observer: { request: (request) => void requests.push(request) },
  });
  t.after(async () => {
    await store.close();
    await server.stop();
  });
  await store.putIfAbsent("a", [Buffer.alloc(70), Buffer.alloc(30)]);
  await store.get("a");
  assert.deepEqual(
    requests.map(({ kind, outcome, bytes }) => [kind, outcome, bytes]),
    [
      ["put", "unavailable", 0],
      ["put", "ok", 100],
      ["get", "ok", 4],
    ],
  );
  for (const { seconds } of requests) assert.ok(seconds > 0);
});

test("a real S3 server and a directory pass the probe by every way that answers, and are left empty", async (t) => {
  const server = await startS3Server();
  t.after(() => server.stop());
  const nobodyListens = "http://127.0.0.1:1";
  const endpoints = [server.endpoint, nobodyListens, `http://localhost:${server.port}`];
  const twoWays = settingsOf(server, { endpoints });
  const directory: StoreSettings = { url: `file://${await temporaryDirectory(t)}/store` };
  for (const settings of [twoWays, directory]) {
    await probeStoreWays(settings, parts, { keys: 20, racers: 16 });
    const store = openStore(settings, parts);
    assert.deepEqual((await store.list("")).objects, []);
    await store.close();
  }
});

test("a real S3 server says what is wrong with a bucket, a key or a region", async (t) => {
  const server = await startS3Server();
  t.after(() => server.stop());
  const { accessKeyId, secretAccessKey } = server;
  const wrong: [Partial<StoreSettings>, RegExp][] = [
    [{ url: "s3://missing-bucket" }, /bucket does not exist: create it/],
    [{ credentials: { kind: "static", accessKeyId, secretAccessKey: "hunter2" } }, /signature does not match/],
    [{ credentials: { kind: "static", accessKeyId: "hunter2", secretAccessKey } }, /does not know this access key/],
    [{ region: "eu-central-1" }, /another region/],
  ];
  for (const [changes, words] of wrong) {
    await assert.rejects(
      () => probeStoreWays(settingsOf(server, changes), parts),
      (error) => isKind(error, "invalid", "not-found") && words.test(error.message) && !/hunter2/.test(error.message),
      JSON.stringify(changes),
    );
  }
});

test("https with a CA of one's own: trusted when named, refused with the way out when not", async (t) => {
  const directory = await temporaryDirectory(t);
  const certificateFile = join(directory, "certificate.pem");
  const keyFile = join(directory, "key.pem");
  const request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split(" ");
  const subject = ["-subj", "/CN=s3block test", "-addext", "subjectAltName=IP:127.0.0.1"];
  await promisify(execFile)("openssl", [...request, ...subject, "-keyout", keyFile, "-out", certificateFile]);
  const server = await startS3Server({ tls: { certificateFile, keyFile } });
  t.after(() => server.stop());
  await probeStoreWays(settingsOf(server, { caFile: certificateFile }), parts, { keys: 2 });
  await assert.rejects(
    () => probeStoreWays(settingsOf(server), parts),
    (error) => isKind(error, "invalid") && error.message.includes("name its CA in the store's CA file"),
  );
  const plain = server.endpoint.replace("https:", "http:");
  await assert.rejects(() => probeStoreWays(settingsOf(server, { endpoints: [plain] }), parts));
});
