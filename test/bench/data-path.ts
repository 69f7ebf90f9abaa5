/**
 * Reads and writes beside nbdkit's file plugin on the same disk, run for run in turn, on volumes with default settings
 * whose store is a directory of that disk too: what is written is uploaded meanwhile, by the same processors.
 *
 * Random and sequential loads have a volume each, because what was written at random is read in pieces. Before a
 * write everything is uploaded, so that none pays for another; reads follow writes at once and find data in the
 * journal. "Cached" reads come when the journal is empty, from the cache's file alone.
 *
 * Random reads at depth 32 come twice: what a machine's kernel took of the files from its memory since the last round
 * is read from the disk in the first row, and is back in the second one, which compares the servers.
 */
import { join } from "node:path";
import type { Extent, Load, LoadResult, Target } from "./fio.ts";
import { runFio } from "./fio.ts";
import type { Pace } from "./pace.ts";
import type { Goal, Row } from "./report.ts";
import { median, ratioOf, row } from "./report.ts";
import { BenchServer, startNbdkit } from "./servers.ts";

const mib = 1024 ** 2;
const volumeBytes = 256 * mib;

interface Case {
  load: Load;
  extent: Extent;
  /** Goal of the ratio of requests per second. */
  goal?: Goal;
}

const atLeastEqual: Goal = { comparison: ">=", value: 1 };

interface Side {
  requestsPerSecond: number[];
  serverMicroseconds: number[];
}

export async function measureDataPath(directory: string, pace: Pace): Promise<Row[]> {
  const server = await BenchServer.start(join(directory, "data-path"));
  const nbdkit = await startNbdkit(join(directory, "data-path-peer"), volumeBytes);
  try {
    const targets = { random: await makeVolume(server, "random"), sequential: await makeVolume(server, "sequential") };
    await runFio(sequential("write", mib, 4), nbdkit.target, { bytes: volumeBytes });
    const timed: Extent = { seconds: pace.seconds };
    const written: Extent = { bytes: pace.writeBytes };
    const compare = (ours: Target, cases: Case[]): Promise<Row[]> =>
      measureInTurn(cases, { server, ours, peer: nbdkit.target, pace });
    const rows = [
      ...(await compare(targets.random, [
        { load: random("randwrite", 32), extent: timed, goal: atLeastEqual },
        { load: behindWrites(random("randread", 32)), extent: timed },
        { load: random("randread", 32), extent: timed, goal: atLeastEqual },
        { load: random("randwrite", 1), extent: timed },
        { load: random("randread", 1), extent: timed },
      ])),
      ...(await compare(targets.sequential, [
        { load: sequential("write", 128 * 1024, 8), extent: written },
        { load: sequential("read", 128 * 1024, 8), extent: timed },
        { load: sequential("write", mib, 4), extent: written },
        { load: sequential("read", mib, 4), extent: timed },
      ])),
    ];
    for (const target of Object.values(targets)) {
      await server.drain(target);
      // What the cache had no time for comes from the store now.
      await runFio(sequential("read", mib, 4), target, { bytes: volumeBytes });
    }
    const before = await server.cacheReads();
    rows.push(
      ...(await compare(targets.random, [
        { load: cached(random("randread", 32)), extent: timed, goal: { comparison: ">", value: 1 } },
        { load: cached(random("randread", 1)), extent: timed },
      ])),
      ...(await compare(targets.sequential, [{ load: cached(sequential("read", 128 * 1024, 8)), extent: timed }])),
    );
    const after = await server.cacheReads();
    const hits = after.hits - before.hits;
    const share = hits / Math.max(1, hits + after.misses - before.misses);
    const { residentMib, peakMib } = await server.memory();
    return [
      ...rows,
      row("reads called cached that the cache answered", share * 100, "%"),
      row("resident memory of a server with a busy volume, most ever", peakMib, "MiB", {
        goal: { comparison: "<", value: 400 },
        note: `${Math.round(residentMib)} MiB at the end`,
      }),
    ];
  } finally {
    await nbdkit.stop();
    await server.stop();
  }
}

/** A volume that holds data everywhere that the loads read. */
async function makeVolume(server: BenchServer, name: string): Promise<Target> {
  await server.create(name, "1GiB", "s3");
  const target = server.target(name, volumeBytes);
  await runFio(sequential("write", mib, 4), target, { bytes: volumeBytes });
  return target;
}

function random(pattern: "randread" | "randwrite", depth: number): Load {
  const name = `random 4 KiB ${pattern === "randread" ? "read" : "write"}, depth ${depth}`;
  return { name, pattern, blockBytes: 4096, depth };
}

function sequential(pattern: "read" | "write", blockBytes: number, depth: number): Load {
  const size = blockBytes >= mib ? `${blockBytes / mib} MiB` : `${blockBytes / 1024} KiB`;
  return { name: `sequential ${size} ${pattern}, depth ${depth}`, pattern, blockBytes, depth };
}

/** Without a goal: how much of its file either side still has in memory depends on what else happened on the machine. */
function behindWrites(load: Load): Load {
  return { ...load, name: `${load.name}, right behind writes` };
}

function cached(load: Load): Load {
  return { ...load, name: `cached: ${load.name}` };
}

interface Contest {
  server: BenchServer;
  ours: Target;
  peer: Target;
  pace: Pace;
}

/**
 * Every case in every round on both servers, who begins changing from round to round, each in a random order of its own.
 * The first round does not count: in it code is compiled and files get their memory, on either side.
 */
async function measureInTurn(cases: readonly Case[], { server, ours, peer, pace }: Contest): Promise<Row[]> {
  const results = cases.map(() => [side(), side()] as const);
  for (let round = 0; round <= pace.rounds; round += 1) {
    for (const [index, { load, extent }] of cases.entries()) {
      for (const turn of round % 2 === 0 ? [0, 1] : [1, 0]) {
        if (turn === 0 && load.pattern.endsWith("write")) await server.drain(ours);
        const seed = round * cases.length + index + 1;
        const result = await runFio(load, turn === 0 ? ours : peer, extent, seed);
        if (round > 0) add(results[index][turn], result);
      }
    }
  }
  return cases.map((each, index) => rowOf(each, results[index][0], results[index][1]));
}

function side(): Side {
  return { requestsPerSecond: [], serverMicroseconds: [] };
}

function add(to: Side, result: LoadResult): void {
  to.requestsPerSecond.push(result.requestsPerSecond);
  to.serverMicroseconds.push(result.serverMicroseconds);
}

function rowOf({ load, goal }: Case, ours: Side, peer: Side): Row {
  const { value, note } = ratioOf(ours.requestsPerSecond, peer.requestsPerSecond);
  const absolute = ({ requestsPerSecond, serverMicroseconds }: Side): string =>
    `${Math.round(median(requestsPerSecond))}/s at ${median(serverMicroseconds).toFixed(1)} µs of processor`;
  return row(load.name, value, "×", {
    peer: "nbdkit file",
    ...(goal === undefined ? {} : { goal }),
    note: `${note}; ${absolute(ours)} against ${absolute(peer)}`,
  });
}
