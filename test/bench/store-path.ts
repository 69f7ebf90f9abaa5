/**
 * What a volume on a real S3 server costs: a flush as a multiple of one PUT of the same size by the same client code,
 * in turn on the same server; requests and stored bytes for what is written; attaching an empty volume of 16 TiB; and
 * requests while nothing happens.
 */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { openSystemDisk } from "../../src/base/system-disk.ts";
import { systemRandom } from "../../src/base/system-random.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { openStore } from "../../src/store/open-store.ts";
import { Engine } from "../../src/volume/engine.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import type { S3Server } from "../suites/s3-server.ts";
import type { Load } from "./fio.ts";
import { runFio } from "./fio.ts";
import type { Pace } from "./pace.ts";
import type { Row } from "./report.ts";
import { median, ratioOf, row } from "./report.ts";
import { BenchServer, startNbdkit } from "./servers.ts";

const execute = promisify(execFile);
const kib = 1024;
const mib = 1024 ** 2;
const gib = 1024 ** 3;
const volumeBytes = 512 * mib;
const attempts = 3;

/** A PUT of the bytes that a flush sends: so many blocks, their frames and the object's head. */
interface FlushCase {
  name: string;
  load: Load;
  objectBytes: number;
  puts: number;
}

const flushCases: readonly FlushCase[] = [
  {
    name: "4 KiB",
    load: { name: "flush of 4 KiB", pattern: "randwrite", blockBytes: 4 * kib, depth: 1, flushEvery: 1 },
    objectBytes: 4 * kib + 256,
    puts: 100,
  },
  {
    name: "4 MiB",
    load: { name: "flush of 4 MiB", pattern: "randwrite", blockBytes: mib, depth: 1, flushEvery: 4 },
    objectBytes: 4 * mib + 16 * kib + 256,
    puts: 20,
  },
];

/** Flush latency, both durabilities. */
export async function measureFlushes(server: BenchServer, s3: S3Server, directory: string, pace: Pace): Promise<Row[]> {
  await server.create("flush-s3", "1GiB", "s3");
  await server.create("flush-local", "1GiB", "local");
  const store = openS3(s3);
  const nbdkit = await startNbdkit(join(directory, "flush-peer"), volumeBytes);
  try {
    const rows: Row[] = [];
    for (const { name, load, objectBytes, puts } of flushCases) {
      const target = server.target("flush-s3", volumeBytes);
      await runFio(load, target, { seconds: 1 });
      await putMs(store, `warm-${objectBytes}`, objectBytes, puts);
      const flushes: number[] = [];
      const singles: number[] = [];
      for (let round = 0; round < pace.rounds; round += 1) {
        singles.push(await putMs(store, `${objectBytes}-${round}`, objectBytes, puts));
        flushes.push((await runFio(load, target, { seconds: pace.seconds }, round + 1)).flushMs);
      }
      const { value, note } = ratioOf(flushes, singles);
      const times = `${median(flushes).toFixed(2)} ms against ${median(singles).toFixed(2)} ms`;
      const goal = { comparison: "<=", value: 1.5 } as const;
      rows.push(
        row(`flush of ${name}, durability s3`, value, "×", {
          goal,
          peer: "one PUT of the size",
          note: `${note}; ${times}`,
        }),
      );
    }
    const local = server.target("flush-local", volumeBytes);
    const ours: number[] = [];
    const peers: number[] = [];
    for (let round = 0; round < pace.rounds; round += 1) {
      ours.push((await runFio(flushCases[0].load, local, { seconds: pace.seconds }, round + 1)).flushMs);
      peers.push((await runFio(flushCases[0].load, nbdkit.target, { seconds: pace.seconds }, round + 1)).flushMs);
    }
    const { value, note } = ratioOf(ours, peers);
    const times = `${median(ours).toFixed(2)} ms against ${median(peers).toFixed(2)} ms`;
    rows.push(row("flush of 4 KiB, durability local", value, "×", { peer: "nbdkit file", note: `${note}; ${times}` }));
    return rows;
  } finally {
    await nbdkit.stop();
    await store.close();
  }
}

/** Requests and stored bytes for what was written, sequentially and at random, each on a volume of its own. */
export async function measureEconomy(server: BenchServer, pace: Pace): Promise<Row[]> {
  const loads: (Load & { bytes: number })[] = [
    { name: "sequential", pattern: "write", blockBytes: mib, depth: 4, bytes: pace.writeBytes },
    { name: "random 4 KiB", pattern: "randwrite", blockBytes: 4 * kib, depth: 32, bytes: pace.writeBytes / 2 },
  ];
  const rows: Row[] = [];
  for (const load of loads) {
    const volume = `economy-${load.pattern}`;
    await server.create(volume, "1GiB", "local");
    const target = server.target(volume, volumeBytes);
    // Opening it costs requests of its own.
    await execute("nbdinfo", ["--size", target.uri]);
    const before = await server.storeRequests();
    const { bytes } = await runFio(load, target, { bytes: load.bytes });
    await server.drained();
    const after = await server.storeRequests();
    const kinds = Object.keys(after.byKind)
      .map((kind) => [kind, after.byKind[kind] - (before.byKind[kind] ?? 0)] as const)
      .filter(([, count]) => count > 0)
      .map(([kind, count]) => `${count} ${kind}`);
    const note = `${Math.round(bytes / mib)} MiB took ${kinds.join(", ")}`;
    rows.push(
      row(`S3 requests for a GiB written, ${load.name}`, ((after.total - before.total) / bytes) * gib, "requests", {
        note,
      }),
      row(`bytes stored for a byte written, ${load.name}`, (after.putBytes - before.putBytes) / bytes, "bytes"),
    );
  }
  return rows;
}

/** Opening an empty volume of 16 TiB: by the first client of the server, and by the engine alone. */
export async function measureAttach(server: BenchServer, s3: S3Server, directory: string): Promise<Row[]> {
  const byClient: number[] = [];
  const byEngine: number[] = [];
  const store = openS3(s3);
  const state = await openSystemDisk(join(directory, "attach"));
  const engine = await Engine.start({
    clock: systemClock,
    random: systemRandom,
    log: nullLog,
    nodeId: "bench-engine",
    cacheDisk: undefined,
    cacheSizeBytes: 0,
    mapBudgetBytes: 256 * mib,
    uploadBudgetBytes: 64 * mib,
    readBudgetBytes: 64 * mib,
    journalSizeBytes: gib,
    uploadIntervalMs: 5000,
  });
  for (let attempt = 0; attempt < attempts; attempt += 1) {
    const ids = [`attach-${attempt}-a`, `attach-${attempt}-b`];
    for (const id of ids) await server.create(id, "16TiB", "s3");
    byClient.push(await timeMs(() => execute("nbdinfo", ["--size", server.uri(ids[0])])));
    const journalDisk = await state.directory(ids[1]);
    const options = { store, journalDisk, mode: "take", readOnly: false, publication: 0 } as const;
    const opening = Promise.withResolvers<{ close(): Promise<void> }>();
    byEngine.push(await timeMs(async () => opening.resolve(await engine.open(mustVolumeId(ids[1]), options))));
    await (await opening.promise).close();
  }
  await engine.close();
  await store.close();
  const goal = { comparison: "<", value: 1000 } as const;
  const rowOf = (name: string, times: number[]): Row =>
    row(name, median(times), "ms", { goal, note: `attempts ${times.map(Math.round).join(", ")}` });
  return [
    rowOf("attach of an empty 16 TiB volume, first NBD client", byClient),
    rowOf("attach of an empty 16 TiB volume, engine alone", byEngine),
  ];
}

/** Begins to watch a server that nobody uses; what is answered ends it and says what it has asked its store for. */
export async function watchIdle(server: BenchServer): Promise<() => Promise<Row>> {
  await server.drained();
  const startedMs = performance.now();
  const before = await server.storeRequests();
  return async () => {
    const { total } = await server.storeRequests();
    const seconds = Math.round((performance.now() - startedMs) / 1000);
    const goal = { comparison: "=", value: 0 } as const;
    return row("S3 requests of idle open volumes", total - before.total, "requests", { goal, note: `in ${seconds} s` });
  };
}

function openS3({ bucket, endpoint, accessKeyId, secretAccessKey }: S3Server): ObjectStore {
  return openStore(
    {
      url: `s3://${bucket}/bench`,
      endpoints: [endpoint],
      credentials: { kind: "static", accessKeyId, secretAccessKey },
    },
    { clock: systemClock, random: systemRandom, log: nullLog },
  );
}

/** Median of the PUTs of `count` new objects, one after the other. */
async function putMs(store: ObjectStore, prefix: string, bytes: number, count: number): Promise<number> {
  const times: number[] = [];
  for (let number = 0; number < count; number += 1) {
    const body = systemRandom.bytes(bytes);
    times.push(await timeMs(() => store.putIfAbsent(`put/${prefix}/${number}`, [body])));
  }
  return median(times);
}

async function timeMs(run: () => Promise<unknown>): Promise<number> {
  const startedMs = performance.now();
  await run();
  return performance.now() - startedMs;
}
