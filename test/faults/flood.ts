/**
 * What a flood of garbage and silent connections costs another client: its latency with and without the flood, in turn,
 * in one run on this machine.
 */
import assert from "node:assert/strict";
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { systemRandom } from "../../src/base/system-random.ts";
import { openStore } from "../../src/store/open-store.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { DriverProcess } from "../e2e/process.ts";
import { NbdClient } from "./nbd-client.ts";

const MIB = 1024 * 1024;
const BLOCK = 4096;
const TURN_MS = 3000;

export interface FloodResult {
  calm: { requests: number; p50Us: number; p99Us: number };
  flooded: { requests: number; p50Us: number; p99Us: number };
  p99Ratio: number;
}

/** `turns` of calm and as many of flood, one after the other. */
export async function flood(turns: number): Promise<FloodResult> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-flood-"));
  const path = (name: string): string => join(directory, name);
  const store = `file://${path("store")}`;
  await createVolume(store);
  const server = new DriverProcess("server", [
    `--store=${store}`,
    `--state-dir=${path("state")}`,
    `--run-dir=${path("run")}`,
    `--control-socket=${path("control.sock")}`,
    `--listen=unix:${path("nbd.sock")}`,
    "--cache-size=0",
    "--journal-size=256MiB",
    "--threads=1",
  ]);
  let flooder: ChildProcess | undefined;
  try {
    await server.start();
    flooder = fork(join(import.meta.dirname, "flooder.ts"), [path("nbd.sock")]);
    const client = await NbdClient.open(path("nbd.sock"), "victim");
    const calm: number[] = [];
    const flooded: number[] = [];
    await measure(client, TURN_MS, []);
    for (let turn = 0; turn < turns; turn += 1) {
      await measure(client, TURN_MS, calm);
      flooder.send("begin");
      await sleep(500);
      await measure(client, TURN_MS, flooded);
      flooder.send("stop");
      await sleep(500);
    }
    client.close();
    const result = { calm: summary(calm), flooded: summary(flooded) };
    return { ...result, p99Ratio: Math.round((result.flooded.p99Us / result.calm.p99Us) * 100) / 100 };
  } finally {
    if (flooder !== undefined) {
      flooder.disconnect();
      await once(flooder, "exit");
    }
    await server.stop("SIGKILL");
    await rm(directory, { recursive: true, force: true });
  }
}

async function createVolume(url: string): Promise<void> {
  const parts = { clock: systemClock, random: systemRandom, log: nullLog };
  const store = openStore({ url }, parts);
  const catalog = new Catalog({ store, ...parts, fenceForDeletion: () => Promise.resolve() });
  const shape = { sizeBytes: 64 * MIB, blockSizeBytes: BLOCK, durability: "local" as const, parameters: {} };
  await catalog.create({ id: mustVolumeId("victim"), name: "victim", ...shape });
  await store.close();
}

async function measure(client: NbdClient, forMs: number, latenciesUs: number[]): Promise<void> {
  const payload = Buffer.alloc(BLOCK, 7);
  const untilMs = performance.now() + forMs;
  while (performance.now() < untilMs) {
    const beganMs = performance.now();
    assert.equal(await client.write((latenciesUs.length % 4096) * BLOCK, payload), 0);
    latenciesUs.push((performance.now() - beganMs) * 1000);
    // As one who thinks between two requests: the flood is measured, not the speed of this process.
    if (latenciesUs.length % 4 === 0) await sleep(1);
  }
}

function summary(latenciesUs: number[]): { requests: number; p50Us: number; p99Us: number } {
  const sorted = latenciesUs.toSorted((left, right) => left - right);
  const at = (share: number): number => Math.round(sorted[Math.floor(sorted.length * share)]);
  return { requests: sorted.length, p50Us: at(0.5), p99Us: at(0.99) };
}
