/**
 * `npm run bench`: what the project promises about speed and cost, as ratios to peers that run in turn with it on the
 * same machine, beside the goals. `--long` takes about fifteen minutes instead of two; `--json FILE` writes the rows;
 * `--directory DIR` is the disk that is measured (default: that of temporary files); `--only NAME` runs one part:
 * store, data-path.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startS3Server } from "../suites/s3-server.ts";
import { measureDataPath } from "./data-path.ts";
import { longPace, type Pace, quickPace } from "./pace.ts";
import { type Row, row, table } from "./report.ts";
import { BenchServer } from "./servers.ts";
import { measureAttach, measureEconomy, measureFlushes, watchIdle } from "./store-path.ts";

const { values } = parseArgs({
  options: {
    json: { type: "string" },
    long: { type: "boolean", default: false },
    only: { type: "string", default: "" },
    directory: { type: "string", default: tmpdir() },
  },
});

async function measure(directory: string, pace: Pace): Promise<Row[]> {
  const rows: Row[] = [];
  const wanted = (part: string): boolean => values.only === "" || values.only === part;
  const take = (more: Row[]): void => {
    rows.push(...more);
    process.stdout.write(`${table(more)}\n`);
  };
  const s3 = await startS3Server({ root: join(directory, "s3") });
  const server = await BenchServer.start(join(directory, "store-path"), s3);
  try {
    if (wanted("store")) {
      take(await measureAttach(server, s3, directory));
      take(await measureFlushes(server, s3, directory, pace));
      take(await measureEconomy(server, pace));
    }
    // The volumes on S3 stay open and idle while those in a directory are busy.
    const idle = await watchIdle(server);
    if (wanted("data-path")) take(await measureDataPath(directory, pace));
    if (wanted("store")) {
      const { peakMib } = await server.memory();
      const goal = { comparison: "<", value: 400 } as const;
      take([await idle(), row("resident memory of a server with volumes on S3, most ever", peakMib, "MiB", { goal })]);
    }
  } finally {
    await server.stop();
    await s3.stop();
  }
  return rows;
}

const directory = await mkdtemp(join(values.directory, "s3block-bench-"));
try {
  const startedMs = performance.now();
  const rows = await measure(directory, values.long ? longPace : quickPace);
  const missed = rows.filter(({ met }) => met === false).length;
  const seconds = Math.round((performance.now() - startedMs) / 1000);
  process.stdout.write(`${rows.length} rows in ${seconds} s, ${missed} goals not met\n`);
  if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify(rows, undefined, 2)}\n`);
} finally {
  await rm(directory, { recursive: true, force: true });
}
