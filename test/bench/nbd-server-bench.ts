/**
 * The NBD server alone, over a device in memory, beside nbdkit's memory and file plugins: fio over a unix socket, the
 * programs taking turns so that a busy machine is unfair to none. The best of the rounds counts for each.
 *
 * Run it: node test/bench/nbd-server-bench.ts [--json FILE] [--rounds N] [--seconds N]. Needs fio and nbdkit.
 */
import type { ChildProcess } from "node:child_process";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { access, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs, promisify } from "node:util";
import { systemClock } from "../../src/base/system-clock.ts";

const SIZE = "512m";
const SIZE_BYTES = 512 * 1024 * 1024;
const execute = promisify(execFile);

interface Load {
  name: string;
  direction: "read" | "write";
  parameters: string[];
}

interface Row {
  name: string;
  value: number;
  unit: string;
  goal: number;
  met: boolean;
  peer: string;
}

const LOADS: Load[] = (["read", "write"] as const).flatMap((direction) => [
  {
    name: `random 4 KiB ${direction}, depth 32`,
    direction,
    parameters: [`--rw=rand${direction}`, "--bs=4k", "--iodepth=32"],
  },
  {
    name: `random 4 KiB ${direction}, depth 1`,
    direction,
    parameters: [`--rw=rand${direction}`, "--bs=4k", "--iodepth=1"],
  },
  {
    name: `sequential 128 KiB ${direction}, depth 8`,
    direction,
    parameters: [`--rw=${direction}`, "--bs=128k", "--iodepth=8"],
  },
  {
    name: `sequential 1 MiB ${direction}, depth 4`,
    direction,
    parameters: [`--rw=${direction}`, "--bs=1m", "--iodepth=4"],
  },
]);

const PROGRAM = `
import { nullLog } from ${JSON.stringify(new URL("../../src/base/log.ts", import.meta.url).href)};
import { systemClock } from ${JSON.stringify(new URL("../../src/base/system-clock.ts", import.meta.url).href)};
import { MemoryDevice } from ${JSON.stringify(new URL("../../src/block/memory-device.ts", import.meta.url).href)};
import { NbdServer } from ${JSON.stringify(new URL("../../src/nbd/server.ts", import.meta.url).href)};
const device = new MemoryDevice({ sizeBytes: ${SIZE_BYTES} });
const source = { list: () => [""], open: async () => ({ device, release() {} }) };
await new NbdServer({ source, clock: systemClock, log: nullLog }).listen({ path: process.argv[1] });
`;

async function start(name: string, directory: string): Promise<{ child: ChildProcess; socket: string }> {
  const socket = join(directory, `${name}.sock`);
  const commands: Record<string, [string, string[]]> = {
    ours: [process.execPath, ["--input-type=module", "--eval", PROGRAM, socket]],
    memory: ["nbdkit", ["--foreground", "--unix", socket, "memory", SIZE]],
    file: ["nbdkit", ["--foreground", "--unix", socket, "file", join(directory, "disk.raw")]],
  };
  const [program, parameters] = commands[name];
  const child = spawn(program, parameters, { stdio: "ignore" });
  for (let waited = 0; waited < 100; waited += 1) {
    const there = await access(socket).then(
      () => true,
      () => false,
    );
    if (there) return { child, socket };
    await systemClock.sleep(50);
  }
  throw new Error(`${name} did not start`);
}

function common(socket: string): string[] {
  return [
    "--name=bench",
    "--ioengine=nbd",
    `--uri=nbd+unix:///?socket=${socket}`,
    `--size=${SIZE}`,
    "--output-format=json",
  ];
}

/** Writes every block once, so that no run pays for memory or disk blocks that were never used. */
async function fill(socket: string): Promise<void> {
  await execute("fio", [...common(socket), "--rw=write", "--bs=1m", "--iodepth=4"]);
}

/** Requests a second of one run. */
async function run(load: Load, socket: string, seconds: number): Promise<number> {
  const { stdout } = await execute("fio", [
    ...common(socket),
    "--time_based",
    `--runtime=${seconds}`,
    ...load.parameters,
  ]);
  const report = JSON.parse(stdout.slice(stdout.indexOf("{"))) as { jobs: Record<string, { iops: number }>[] };
  return report.jobs[0][load.direction].iops;
}

async function measure(rounds: number, seconds: number): Promise<Row[]> {
  const directory = await mkdtemp(join(tmpdir(), "nbd-bench-"));
  const best = new Map<string, number>();
  const children: ChildProcess[] = [];
  try {
    await writeFile(join(directory, "disk.raw"), "");
    await truncate(join(directory, "disk.raw"), SIZE_BYTES);
    const servers = new Map<string, string>();
    for (const name of ["ours", "memory", "file"]) {
      const { child, socket } = await start(name, directory);
      children.push(child);
      servers.set(name, socket);
      await fill(socket);
    }
    for (let round = 0; round < rounds; round += 1) {
      for (const load of LOADS) {
        for (const [name, socket] of servers) {
          const key = `${name} ${load.name}`;
          best.set(key, Math.max(best.get(key) ?? 0, await run(load, socket, seconds)));
        }
      }
    }
  } finally {
    for (const child of children) {
      if (child.exitCode === null && child.kill()) await once(child, "exit");
    }
    await rm(directory, { recursive: true, force: true });
  }
  return LOADS.flatMap((load) => rowsOf(load, best));
}

function rowsOf(load: Load, best: Map<string, number>): Row[] {
  const ours = best.get(`ours ${load.name}`) ?? 0;
  const absolute: Row = { name: load.name, value: Math.round(ours), unit: "requests/s", goal: 0, met: true, peer: "" };
  const ratios = ["memory", "file"].map((peer) => {
    const value = Number((ours / (best.get(`${peer} ${load.name}`) ?? 1)).toFixed(2));
    return { name: load.name, value, unit: "ratio", goal: 1, met: value >= 1, peer: `nbdkit ${peer}` };
  });
  return [absolute, ...ratios];
}

const { values } = parseArgs({
  options: {
    json: { type: "string" },
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "2" },
  },
});
const rows = await measure(Number(values.rounds), Number(values.seconds));
for (const row of rows) {
  process.stdout.write(`${row.name.padEnd(36)} ${String(row.value).padStart(8)} ${row.unit} ${row.peer}\n`);
}
if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify(rows, undefined, 2)}\n`);
