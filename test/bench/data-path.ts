/**
 * Reads and writes beside nbdkit's file plugin on the same disk, run for run in turn, on a volume with default settings
 * whose store is a directory of that disk too: what is written is uploaded meanwhile, by the same two cores.
 *
 * Writes: bounded in bytes, so that the journal takes them, and drained in between. Reads: "just written" find data in
 * journal and cache alike; "cached" ones come after everything was uploaded, from the cache's file alone.
 */
import { join } from "node:path";
import type { Extent, Load, LoadResult, Target } from "./fio.ts";
import { runFio } from "./fio.ts";
import type { Pace } from "./pace.ts";
import type { Row } from "./report.ts";
import { median, ratioOf, row } from "./report.ts";
import { BenchServer, startNbdkit } from "./servers.ts";

const mib = 1024 ** 2;
const volumeBytes = 512 * mib;

interface Case {
  load: Load;
  extent: Extent;
  /** Goal of the ratio of requests per second. */
  goal?: number;
}

interface Side {
  requestsPerSecond: number[];
  serverMicroseconds: number[];
}

/** All rows, and the most memory that the server ever had resident. */
export async function measureDataPath(directory: string, pace: Pace): Promise<Row[]> {
  const server = await BenchServer.start(join(directory, "data-path"));
  const nbdkit = await startNbdkit(directory, volumeBytes);
  try {
    await server.create("data-path", "1GiB", "local");
    const ours = server.target("data-path", volumeBytes);
    for (const target of [ours, nbdkit.target]) await fill(target);
    const read: Extent = { seconds: pace.seconds };
    const write: Extent = { bytes: pace.writeBytes };
    const small: Extent = { seconds: pace.seconds };
    const compare = (cases: Case[]): Promise<Row[]> =>
      measureInTurn(cases, { server, ours, peer: nbdkit.target, pace });
    const written = await compare([
      { load: random("randwrite", 32), extent: small, goal: 1 },
      { load: random("randread", 32), extent: read, goal: 1 },
      { load: random("randwrite", 1), extent: small },
      { load: random("randread", 1), extent: read },
      { load: sequential("write", 128 * 1024, 8), extent: write },
      { load: sequential("read", 128 * 1024, 8), extent: read },
      { load: sequential("write", mib, 4), extent: write },
      { load: sequential("read", mib, 4), extent: read },
    ]);
    await server.drained();
    await runFio(sequential("read", mib, 4), ours, { bytes: volumeBytes });
    const before = await server.cacheReads();
    const cached = await compare([
      { load: named(random("randread", 32), "cached"), extent: read, goal: 1.01 },
      { load: named(random("randread", 1), "cached"), extent: read },
      { load: named(sequential("read", 128 * 1024, 8), "cached"), extent: read },
    ]);
    const after = await server.cacheReads();
    const hits = (after.hits - before.hits) / Math.max(1, after.hits - before.hits + after.misses - before.misses);
    const { residentMib, peakMib } = await server.memory();
    return [
      ...written,
      ...cached,
      row("cached reads that the cache answered", hits * 100, "%"),
      row("resident memory of a server with one busy volume, most ever", peakMib, "MiB", {
        goal: { comparison: "<", value: 400 },
        note: `${Math.round(residentMib)} MiB at the end`,
      }),
    ];
  } finally {
    await nbdkit.stop();
    await server.stop();
  }
}

function random(pattern: "randread" | "randwrite", depth: number): Load {
  const name = `random 4 KiB ${pattern === "randread" ? "read" : "write"}, depth ${depth}`;
  return { name, pattern, blockBytes: 4096, depth };
}

function sequential(pattern: "read" | "write", blockBytes: number, depth: number): Load {
  const size = blockBytes >= mib ? `${blockBytes / mib} MiB` : `${blockBytes / 1024} KiB`;
  return { name: `sequential ${size} ${pattern}, depth ${depth}`, pattern, blockBytes, depth };
}

function named(load: Load, state: string): Load {
  return { ...load, name: `${state}: ${load.name}` };
}

async function fill(target: Target): Promise<void> {
  await runFio(sequential("write", mib, 4), target, { bytes: volumeBytes });
}

interface Contest {
  server: BenchServer;
  ours: Target;
  peer: Target;
  pace: Pace;
}

/** Every case in every round on both servers, who begins changing from round to round. */
async function measureInTurn(cases: readonly Case[], { server, ours, peer, pace }: Contest): Promise<Row[]> {
  const results = cases.map(() => [side(), side()]);
  for (let round = 0; round < pace.rounds; round += 1) {
    for (const [index, { load, extent }] of cases.entries()) {
      for (const turn of round % 2 === 0 ? [0, 1] : [1, 0]) {
        add(results[index][turn], await runFio(load, turn === 0 ? ours : peer, extent, round + 1));
        // What one run left to upload must not be paid by the next.
        if (turn === 0 && load.pattern.endsWith("write")) await server.drained();
      }
    }
  }
  return cases.flatMap((each, index) => rowsOf(each, results[index][0], results[index][1]));
}

function side(): Side {
  return { requestsPerSecond: [], serverMicroseconds: [] };
}

function add(to: Side, result: LoadResult): void {
  to.requestsPerSecond.push(result.requestsPerSecond);
  to.serverMicroseconds.push(result.serverMicroseconds);
}

function rowsOf({ load, goal }: Case, ours: Side, peer: Side): Row[] {
  const { value, note } = ratioOf(ours.requestsPerSecond, peer.requestsPerSecond);
  const absolute = (which: Side): string =>
    `${Math.round(median(which.requestsPerSecond))}/s and ${median(which.serverMicroseconds).toFixed(1)} µs of processor`;
  return [
    row(load.name, value, "×", {
      peer: "nbdkit file",
      ...(goal === undefined ? {} : { goal: { comparison: goal > 1 ? ">" : ">=", value: Math.floor(goal) } }),
      note: `${note}; ${absolute(ours)} against ${absolute(peer)}`,
    }),
  ];
}
