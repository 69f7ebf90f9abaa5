/**
 * What the processes count, by prom-client: names s3block_…, base units (seconds, bytes), counters end in _total.
 * The hot path adds to plain numbers and LatencyHistograms; labels and text are made when somebody scrapes.
 * A server's threads each have a Metrics; `snapshot` crosses threads by structured clone, and `expose` sums the
 * snapshots. Label values come from closed sets and volume ids, so the number of series is bounded by the volumes:
 * a closed volume is removed with `removeVolume`.
 */
import { AggregatorRegistry, collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
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
  hits: number;
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

export const metricsContentType = Registry.PROMETHEUS_CONTENT_TYPE;

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
  readonly #registry = new Registry();
  readonly #volumes = new Map<string, VolumeMetrics>();
  readonly #storeRequests: Counter<"kind" | "outcome">;
  readonly #storeBytes: Counter<"kind">;
  readonly #storeLatency: Histogram<"kind">;
  #cache: (() => CacheCounters) | undefined;

  constructor() {
    const registers = [this.#registry];
    this.#storeRequests = new Counter({
      name: "s3block_store_requests_total",
      help: "Requests to the object store by kind and outcome (ok or the kind of the error).",
      labelNames: ["kind", "outcome"],
      registers,
    });
    this.#storeBytes = new Counter({
      name: "s3block_store_bytes_total",
      help: "Bytes of bodies sent to and received from the object store by kind of request.",
      labelNames: ["kind"],
      registers,
    });
    this.#storeLatency = new Histogram({
      name: "s3block_store_request_seconds",
      help: "Time of a request to the object store, by kind.",
      labelNames: ["kind"],
      buckets: [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60],
      registers,
    });
    for (const collect of [
      () => this.#operationLatency(),
      () => this.#operationBytes(),
      () => this.#operationErrors(),
      ...volumeGaugeTable.map((row) => () => this.#volumeGauge(row)),
      () => this.#cacheReads(),
    ]) {
      this.#register(collect);
    }
  }

  /** For the measuring decorator of the object store. */
  readonly storeObserver = {
    request: (observation: StoreObservation): void => {
      const { kind, outcome, seconds, bytes } = observation;
      this.#storeRequests.inc({ kind, outcome });
      this.#storeBytes.inc({ kind }, bytes);
      this.#storeLatency.observe({ kind }, seconds);
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

  /** A gauge of the process, read when somebody scrapes. */
  addGauge(name: string, help: string, read: () => number): void {
    new Gauge({
      name,
      help,
      registers: [this.#registry],
      collect() {
        this.set(read());
      },
    });
  }

  /** Memory, processor time, event loop and garbage collection of this process: once, on the main thread. */
  addProcessMetrics(): void {
    collectDefaultMetrics({ register: this.#registry });
  }

  async snapshot(): Promise<MetricsSnapshot> {
    return structuredClone(await this.#registry.getMetricsAsJSON());
  }

  /** The Prometheus text of several threads' snapshots: equal series are summed. */
  static async expose(snapshots: readonly MetricsSnapshot[]): Promise<string> {
    return AggregatorRegistry.aggregate(snapshots.map((snapshot) => [...snapshot])).metrics();
  }

  #register(collect: () => Collected): void {
    const { name, help, type, aggregator } = collect();
    const metric = { name, help, type, aggregator, get: async () => collect(), reset() {} };
    // prom-client asks a metric for its name and get() alone; its class types say more than it uses.
    this.#registry.registerMetric(metric as unknown as Gauge);
  }

  #operationLatency(): Collected {
    const name = "s3block_volume_operation_seconds";
    const values: SampleValue[] = [];
    for (const [volume, operation, counters] of this.#allOperations()) {
      const labels = { volume, operation };
      const cumulative = counters.latency.cumulativeCounts();
      for (const [index, le] of latencyBucketsSeconds.entries()) {
        values.push({ labels: { ...labels, le }, value: cumulative[index], metricName: `${name}_bucket` });
      }
      values.push({ labels: { ...labels, le: "+Inf" }, value: counters.latency.count, metricName: `${name}_bucket` });
      values.push({ labels, value: counters.latency.sumSeconds, metricName: `${name}_sum` });
      values.push({ labels, value: counters.latency.count, metricName: `${name}_count` });
    }
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
            { labels: { result: "hit" }, value: counters.hits },
            { labels: { result: "miss" }, value: counters.misses },
          ];
    const help = "Reads that the block cache answered (hit) or the object store had to (miss).";
    return { name: "s3block_cache_reads_total", help, type: "counter", aggregator: "sum", values };
  }

  *#allOperations(): Generator<[string, string, OperationCounters]> {
    for (const [volume, metrics] of this.#volumes) {
      for (const [operation, counters] of metrics.operations) yield [volume, operation, counters];
    }
  }
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
