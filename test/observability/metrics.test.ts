/** What is counted, and how it looks to a scraper. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { nullLog } from "../../src/base/log.ts";
import { isKind } from "../../src/base/errors.ts";
import { HttpServer, parseAddress } from "../../src/observability/http.ts";
import { LatencyHistogram, latencyBucketsSeconds } from "../../src/observability/latency-histogram.ts";
import { Metrics } from "../../src/observability/metrics.ts";

const gauges = {
  sizeBytes: 100,
  dirtyBytes: 7,
  behindSeconds: 1.5,
  journalUsedBytes: 8,
  journalLimitBytes: 9,
  journalFullSeconds: Infinity,
  failed: false,
};

function sampleOf(text: string, name: string): string | undefined {
  return text
    .split("\n")
    .find((line) => line.startsWith(`${name} `))
    ?.slice(name.length + 1);
}

test("a histogram counts each observation in every bucket that is large enough", () => {
  const histogram = new LatencyHistogram();
  for (const seconds of [0, 0.00001, 0.000011, 0.5, 60, 61]) histogram.observe(seconds);
  const counts = histogram.cumulativeCounts();
  const countUpTo = (bound: number): number => counts[latencyBucketsSeconds.indexOf(bound)];
  assert.deepEqual([0.00001, 0.00002, 0.2, 0.5, 60].map(countUpTo), [2, 3, 3, 4, 5]);
  assert.equal(histogram.count, 6);
  assert.ok(Math.abs(histogram.sumSeconds - 121.500021) < 1e-9);
});

test("operations of a volume show as histogram, bytes and errors", async () => {
  const metrics = new Metrics();
  const volume = metrics.addVolume("vol-1", () => gauges);
  volume.completed("write", 4096, 0.3, false);
  volume.completed("write", 4096, 3, true);
  const text = await Metrics.expose([await metrics.snapshot()]);
  const labels = 'volume="vol-1",operation="write"';
  assert.equal(sampleOf(text, `s3block_volume_operation_seconds_bucket{${labels},le="0.0005"}`), "1");
  assert.equal(sampleOf(text, `s3block_volume_operation_seconds_bucket{${labels},le="+Inf"}`), "2");
  assert.equal(sampleOf(text, `s3block_volume_operation_seconds_count{${labels}}`), "2");
  assert.equal(sampleOf(text, `s3block_volume_operation_bytes_total{${labels}}`), "4096");
  assert.equal(sampleOf(text, `s3block_volume_operation_errors_total{${labels}}`), "1");
  assert.equal(sampleOf(text, 's3block_volume_dirty_bytes{volume="vol-1"}'), "7");
  assert.equal(sampleOf(text, 's3block_volume_behind_seconds{volume="vol-1"}'), "1.5");
  assert.equal(sampleOf(text, 's3block_volume_failed{volume="vol-1"}'), "0");
});

test("requests to the store show by kind and outcome", async () => {
  const metrics = new Metrics();
  metrics.storeObserver.request({ kind: "put", outcome: "ok", seconds: 0.03, bytes: 1000 });
  metrics.storeObserver.request({ kind: "put", outcome: "unavailable", seconds: 20, bytes: 0 });
  const text = await Metrics.expose([await metrics.snapshot()]);
  assert.equal(sampleOf(text, 's3block_store_requests_total{kind="put",outcome="unavailable"}'), "1");
  assert.equal(sampleOf(text, 's3block_store_bytes_total{kind="put"}'), "1000");
  assert.equal(sampleOf(text, 's3block_store_request_seconds_bucket{kind="put",le="0.05"}'), "1");
});

test("what several threads counted is summed, and a closed volume goes", async () => {
  const [one, two] = [new Metrics(), new Metrics()];
  for (const [metrics, hits] of [
    [one, 3],
    [two, 4],
  ] as const) {
    metrics.setCache(() => ({ memoryHits: 10 * hits, diskHits: hits, misses: 1 }));
    metrics.addGauge("s3block_open_volumes", "Open volumes.", () => 1);
    metrics.storeObserver.request({ kind: "get", outcome: "ok", seconds: 0.01, bytes: 10 });
  }
  one.addVolume("vol-1", () => gauges);
  two.addVolume("vol-2", () => gauges);
  await one.addProcessMetrics();
  two.removeVolume("vol-2");
  const text = await Metrics.expose([await one.snapshot(), await two.snapshot()]);
  assert.equal(sampleOf(text, 's3block_cache_reads_total{result="disk"}'), "7");
  assert.equal(sampleOf(text, 's3block_cache_reads_total{result="memory"}'), "70");
  assert.equal(sampleOf(text, "s3block_open_volumes"), "2");
  assert.equal(sampleOf(text, 's3block_store_bytes_total{kind="get"}'), "20");
  assert.match(text, /vol-1/);
  assert.doesNotMatch(text, /vol-2/);
  assert.match(text, /^process_resident_memory_bytes \d/m);
});

test("every metric has a name with the prefix and a unit or total, and a help text", async () => {
  const metrics = new Metrics();
  metrics.addVolume("vol-1", () => gauges);
  const text = await Metrics.expose([await metrics.snapshot()]);
  const names = [...text.matchAll(/^# HELP (\S+) (.+)$/gm)];
  assert.ok(names.length >= 12);
  for (const [, name, help] of names) {
    assert.match(name, /^s3block_[a-z_]+_(seconds|bytes|total|failed)$/);
    assert.match(help, /\.$/);
  }
});

async function withServer(
  parts: { metrics?: () => Promise<string>; unhealthy?: () => string | undefined },
  use: (base: string) => Promise<void>,
): Promise<void> {
  const { metrics = async () => "x 1\n", unhealthy = () => undefined } = parts;
  const server = new HttpServer({ address: "127.0.0.1:0", log: nullLog, metrics, unhealthy });
  const address = await server.listen();
  try {
    await use(`http://${address}`);
  } finally {
    await server.close();
  }
}

test("health and metrics are served, and nothing else", async () => {
  await withServer({}, async (base) => {
    const health = await fetch(`${base}/healthz`);
    assert.deepEqual([health.status, await health.text()], [200, "ok\n"]);
    const metrics = await fetch(`${base}/metrics?x=1`);
    assert.deepEqual([metrics.status, await metrics.text()], [200, "x 1\n"]);
    assert.match(metrics.headers.get("content-type") ?? "", /text\/plain; version=0\.0\.4/);
    for (const path of ["/", "/metrics/../etc/passwd", "/healthz/x"]) {
      const answer = await fetch(base + path);
      await answer.text();
      assert.equal(answer.status, 404);
    }
    const post = await fetch(`${base}/metrics`, { method: "POST", body: "x".repeat(100_000) });
    await post.text();
    assert.equal(post.status, 405);
  });
});

test("an unhealthy process says why, and a failing scrape shows no insides", async () => {
  const parts = { unhealthy: () => "the store is away", metrics: () => Promise.reject(new Error("canary")) };
  await withServer(parts, async (base) => {
    const health = await fetch(`${base}/healthz`);
    assert.deepEqual([health.status, await health.text()], [503, "the store is away\n"]);
    const metrics = await fetch(`${base}/metrics`);
    assert.deepEqual([metrics.status, await metrics.text()], [500, "metrics could not be collected\n"]);
  });
});

test("an address that is taken or malformed is an error that names the flag", async () => {
  await withServer({}, async (base) => {
    const address = base.slice("http://".length);
    const second = new HttpServer({ address, log: nullLog, metrics: async () => "", unhealthy: () => undefined });
    await assert.rejects(
      second.listen(),
      (error) => isKind(error, "unavailable") && /--metrics-address/.test(error.message),
    );
  });
  assert.deepEqual(parseAddress("[::1]:80"), { host: "::1", port: 80 });
  for (const text of ["", ":80", "host", "host:", "host:99999", "a b:1", "::1:80"]) {
    assert.throws(
      () => parseAddress(text),
      (error) => isKind(error, "invalid"),
    );
  }
});
