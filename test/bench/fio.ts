/**
 * fio's nbd engine over a unix socket: one load, one run, the numbers that the benchmark compares. With `pid` it also
 * counts the processor time that the serving process took for a request, which a busy machine distorts less than time.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const execute = promisify(execFile);
const kernelTicksPerSecond = 100;

export interface Load {
  name: string;
  pattern: "randread" | "randwrite" | "read" | "write";
  blockBytes: number;
  depth: number;
  /** A flush after so many writes. */
  flushEvery?: number;
}

export interface Target {
  uri: string;
  /** Of the serving process. */
  pid: number;
  sizeBytes: number;
}

/** How long a run goes on, or how much it moves. */
export type Extent = { seconds: number } | { bytes: number };

export interface LoadResult {
  requestsPerSecond: number;
  bytes: number;
  /** Processor time of the serving process for one request, microseconds. */
  serverMicroseconds: number;
  /** Median of a flush, milliseconds; 0 where there was none. */
  flushMs: number;
}

interface FioSide {
  iops: number;
  io_bytes: number;
  total_ios: number;
}

interface FioReport {
  jobs: { read: FioSide; write: FioSide; sync: { lat_ns: { percentile?: Record<string, number> } } }[];
}

/** Runs `load` against `target` once; `seed` makes another random order. Rejects where fio met an error. */
export async function runFio(load: Load, target: Target, extent: Extent, seed = 1): Promise<LoadResult> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-fio-"));
  try {
    const output = join(directory, "report.json");
    const args = [
      "--name=bench",
      "--ioengine=nbd",
      `--uri=${target.uri}`,
      `--rw=${load.pattern}`,
      `--bs=${load.blockBytes}`,
      `--iodepth=${load.depth}`,
      `--size=${target.sizeBytes}`,
      `--randseed=${seed}`,
      "--norandommap",
      "--output-format=json",
      `--output=${output}`,
      ...(load.flushEvery === undefined ? [] : [`--fsync=${load.flushEvery}`]),
      ...("seconds" in extent
        ? ["--time_based", `--runtime=${Math.round(extent.seconds * 1000)}ms`]
        : [`--io_size=${extent.bytes}`]),
    ];
    const before = await processorSeconds(target.pid);
    await execute("fio", args);
    const usedSeconds = (await processorSeconds(target.pid)) - before;
    const text = await readFile(output, "utf8");
    const { jobs } = JSON.parse(text.slice(text.indexOf("{"))) as FioReport;
    const side = load.pattern.endsWith("read") ? jobs[0].read : jobs[0].write;
    return {
      requestsPerSecond: side.iops,
      bytes: side.io_bytes,
      serverMicroseconds: (usedSeconds * 1e6) / Math.max(1, side.total_ios),
      flushMs: (jobs[0].sync.lat_ns.percentile?.["50.000000"] ?? 0) / 1e6,
    };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** User and system time of a process so far. */
export async function processorSeconds(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8");
  // The program's name, the second field, may hold anything up to the last parenthesis.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / kernelTicksPerSecond;
}
