/**
 * What the processes count: names s3block_…, base units (seconds, bytes), counters end in _total. Text is made by
 * prom-client, which is loaded for the process's own metrics or the first scrape: threads and a server's start do
 * without. The hot path adds to plain numbers and LatencyHistograms; labels and text are made when somebody scrapes.
 * A server's threads each have a Metrics; `snapshot` crosses threads by structured clone, and `expose` sums the
 * snapshots. Label values come from closed sets and volume ids, so the number of series is bounded by the volumes:
 * a closed volume is removed with `removeVolume`.
 */
import type { Registry } from "prom-client";
import { LatencyHistogram, latencyBucketsSeconds } from "./latency-histogram.ts";

/** What a gauge of a volume shows; read when somebody scrapes. */
export interface VolumeGauges {
  sizeBytes: number;
  dirtyBytes: number;
  behindSeconds: number;
  journalUsedBytes: number;
  journalLimitBytes: number;
  /** Infinity where it does not fill. */
  journalFullSeconds: number;
  failed: boolean;
}

/** What a cache counts since it was opened. */
export interface CacheCounters {
  memoryHits: number;
  diskHits: number;
  misses: number;
}

/** One request to the object store, as the measuring decorator tells it. */
export interface StoreObservation {
  kind: string;
  /** "ok" or the kind of the error. */
  outcome: string;
  seconds: number;
  bytes: number;
}

/** One thread's metrics as plain data. */
export type MetricsSnapshot = readonly object[];

/** The content type of Prometheus's text format. */
export const metricsContentType = "text/plain; version=0.0.4; charset=utf-8";

interface SampleValue {
  labels: Record<string, string | number>;
  value: number;
  metricName?: string;
}

interface Collected {
  name: string;
  help: string;
  type: "counter" | "gauge" | "histogram";
  aggregator: "sum";
  values: SampleValue[];
}

/** Counts of one kind of request to the store. */
interface StoreCounters {
  readonly latency: LatencyHistogram;
  readonly outcomes: Map<string, number>;
  bytes: number;
}

/** Counts of one kind of operation of one volume. */
interface OperationCounters {
  readonly latency: LatencyHistogram;
  bytes: number;
  errors: number;
}

/** Observer of one volume's device, as the measuring decorator calls it. */
export class VolumeMetrics {
  readonly operations = new Map<string, OperationCounters>();
  readonly gauges: () => VolumeGauges;

  constructor(gauges: () => VolumeGauges) {
    this.gauges = gauges;
  }

  completed(operation: string, bytes: number, durationMs: number, failed: boolean): void {
    let counters = this.operations.get(operation);
    if (counters === undefined) {
      counters = { latency: new LatencyHistogram(), bytes: 0, errors: 0 };
      this.operations.set(operation, counters);
    }
    counters.latency.observe(durationMs / 1000);
    if (failed) counters.errors += 1;
    else counters.bytes += bytes;
  }
}

export class Metrics {
  readonly #sources: (() => Collected)[];
  readonly #volumes = new Map<string, VolumeMetrics>();
  readonly #storeKinds = new Map<string, StoreCounters>();
  #process: Registry | undefined;
  #cache: (() => CacheCounters) | undefined;
  #takeovers: (() => number) | undefined;

  constructor() {
    this.#sources = [
      () => this.#storeRequests(),
      () => this.#storeBytes(),
      () => this.#storeLatency(),
      () => this.#operationLatency(),
      () => this.#operationBytes(),
      () => this.#operationErrors(),
      ...volumeGaugeTable.map((row) => () => this.#volumeGauge(row)),
      () => this.#cacheReads(),
      () => this.#takeoverCount(),
    ];
  }

  /** For the measuring decorator of the object store. */
  readonly storeObserver = {
    request: (observation: StoreObservation): void => {
      const { kind, outcome, seconds, bytes } = observation;
      let counters = this.#storeKinds.get(kind);
      if (counters === undefined) {
        counters = { latency: new LatencyHistogram(), outcomes: new Map(), bytes: 0 };
        this.#storeKinds.set(kind, counters);
      }
      counters.outcomes.set(outcome, (counters.outcomes.get(outcome) ?? 0) + 1);
      counters.bytes += bytes;
      counters.latency.observe(seconds);
    },
  };

  /** Starts series for a volume; a second call for the same id replaces the first. */
  addVolume(volumeId: string, gauges: () => VolumeGauges): VolumeMetrics {
    const volume = new VolumeMetrics(gauges);
    this.#volumes.set(volumeId, volume);
    return volume;
  }

  removeVolume(volumeId: string): void {
    this.#volumes.delete(volumeId);
  }

  /** Counters of the cache of this thread. */
  setCache(counters: () => CacheCounters): void {
    this.#cache = counters;
  }

  /** How often another process has gone on where the serving one had ended: of a server with a supervisor. */
  setTakeovers(read: () => number): void {
    this.#takeovers = read;
  }

  /** A gauge of the process, read when somebody scrapes. */
  addGauge(name: string, help: string, read: () => number): void {
    this.#sources.push(() => ({
      name,
      help,
      type: "gauge",
      aggregator: "sum",
      values: [{ labels: {}, value: read() }],
    }));
  }

  /** Loads the library that makes text. */
  static async preload(): Promise<void> {
    await import("prom-client");
  }

  /** Memory, processor time, event loop and garbage collection of this process: once, on the main thread. */
  async addProcessMetrics(): Promise<void> {
    const { collectDefaultMetrics, Registry } = await import("prom-client");
    this.#process = new Registry();
    collectDefaultMetrics({ register: this.#process });
  }

  async snapshot(): Promise<MetricsSnapshot> {
    const own = this.#sources.map((collect) => collect());
    return this.#process === undefined ? own : [...structuredClone(await this.#process.getMetricsAsJSON()), ...own];
  }

  /** The Prometheus text of several threads' snapshots: equal series are summed. */
  static async expose(snapshots: readonly MetricsSnapshot[]): Promise<string> {
    const { AggregatorRegistry } = await import("prom-client");
    return AggregatorRegistry.aggregate(snapshots.map((snapshot) => [...snapshot])).metrics();
  }

  #storeRequests(): Collected {
    const values = [...this.#storeKinds].flatMap(([kind, { outcomes }]) =>
      [...outcomes].map(([outcome, value]) => ({ labels: { kind, outcome }, value })),
    );
    const help = "Requests to the object store by kind and outcome (ok or the kind of the error).";
    return { name: "s3block_store_requests_total", help, type: "counter", aggregator: "sum", values };
  }

  #storeBytes(): Collected {
    const values = [...this.#storeKinds].map(([kind, { bytes }]) => ({ labels: { kind }, value: bytes }));
    const help = "Bytes of bodies sent to and received from the object store by kind of request.";
    return { name: "s3block_store_bytes_total", help, type: "counter", aggregator: "sum", values };
  }

  #storeLatency(): Collected {
    const name = "s3block_store_request_seconds";
    const values = [...this.#storeKinds].flatMap(([kind, { latency }]) => histogramValues(name, { kind }, latency));
    const help = "Time of a request to the object store, by kind.";
    return { name, help, type: "histogram", aggregator: "sum", values };
  }

  #operationLatency(): Collected {
    const name = "s3block_volume_operation_seconds";
    const values = [...this.#allOperations()].flatMap(([volume, operation, { latency }]) =>
      histogramValues(name, { volume, operation }, latency),
    );
    const help = "Time from a request of a volume's device to its completion, by operation.";
    return { name, help, type: "histogram", aggregator: "sum", values };
  }

  #operationBytes(): Collected {
    const values = [...this.#allOperations()].map(([volume, operation, { bytes }]) => ({
      labels: { volume, operation },
      value: bytes,
    }));
    const help = "Bytes that requests of a volume's device covered, by operation.";
    return { name: "s3block_volume_operation_bytes_total", help, type: "counter", aggregator: "sum", values };
  }

  #operationErrors(): Collected {
    const values = [...this.#allOperations()].map(([volume, operation, { errors }]) => ({
      labels: { volume, operation },
      value: errors,
    }));
    const help = "Requests of a volume's device that were answered with an error, by operation.";
    return { name: "s3block_volume_operation_errors_total", help, type: "counter", aggregator: "sum", values };
  }

  #volumeGauge(row: VolumeGaugeRow): Collected {
    const values = [...this.#volumes].map(([volume, metrics]) => ({
      labels: { volume },
      value: row.read(metrics.gauges()),
    }));
    return { name: row.name, help: row.help, type: "gauge", aggregator: "sum", values };
  }

  #cacheReads(): Collected {
    const counters = this.#cache?.();
    const values =
      counters === undefined
        ? []
        : [
            { labels: { result: "memory" }, value: counters.memoryHits },
            { labels: { result: "disk" }, value: counters.diskHits },
            { labels: { result: "miss" }, value: counters.misses },
          ];
    const help = "Reads that the block cache answered from memory or disk, or the object store had to (miss).";
    return { name: "s3block_cache_reads_total", help, type: "counter", aggregator: "sum", values };
  }

  #takeoverCount(): Collected {
    const values = this.#takeovers === undefined ? [] : [{ labels: {}, value: this.#takeovers() }];
    const help = "Times that another process has gone on where the serving one had ended.";
    return { name: "s3block_server_takeovers_total", help, type: "counter", aggregator: "sum", values };
  }

  *#allOperations(): Generator<[string, string, OperationCounters]> {
    for (const [volume, metrics] of this.#volumes) {
      for (const [operation, counters] of metrics.operations) yield [volume, operation, counters];
    }
  }
}

/** The samples of one series of a histogram. */
function histogramValues(name: string, labels: Record<string, string>, histogram: LatencyHistogram): SampleValue[] {
  const cumulative = histogram.cumulativeCounts();
  const bucket = (le: string | number, value: number): SampleValue => ({
    labels: { ...labels, le },
    value,
    metricName: `${name}_bucket`,
  });
  return [
    ...latencyBucketsSeconds.map((le, index) => bucket(le, cumulative[index])),
    bucket("+Inf", histogram.count),
    { labels, value: histogram.sumSeconds, metricName: `${name}_sum` },
    { labels, value: histogram.count, metricName: `${name}_count` },
  ];
}

interface VolumeGaugeRow {
  name: string;
  help: string;
  read(gauges: VolumeGauges): number;
}

const volumeGaugeTable: readonly VolumeGaugeRow[] = [
  { name: "s3block_volume_size_bytes", help: "Size of the volume.", read: (gauges) => gauges.sizeBytes },
  {
    name: "s3block_volume_dirty_bytes",
    help: "Bytes acknowledged and not yet in the object store.",
    read: (gauges) => gauges.dirtyBytes,
  },
  {
    name: "s3block_volume_behind_seconds",
    help: "Age of the oldest byte that is acknowledged and not yet in the object store.",
    read: (gauges) => gauges.behindSeconds,
  },
  {
    name: "s3block_volume_journal_used_bytes",
    help: "Bytes in the volume's journal.",
    read: (gauges) => gauges.journalUsedBytes,
  },
  {
    name: "s3block_volume_journal_limit_bytes",
    help: "Bytes that the volume's journal may hold.",
    read: (gauges) => gauges.journalLimitBytes,
  },
  {
    name: "s3block_volume_journal_full_seconds",
    help: "Seconds until the volume's journal is full, at the speed of the last minute; +Inf where it does not fill.",
    read: (gauges) => gauges.journalFullSeconds,
  },
  {
    name: "s3block_volume_failed",
    help: "1 where the volume was fenced or found corrupt and answers errors, else 0.",
    read: (gauges) => (gauges.failed ? 1 : 0),
  },
];
