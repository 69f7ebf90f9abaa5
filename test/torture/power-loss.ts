/**
 * Power losses: the guest is ended at a random moment in the midst of synced writes, and what its kernel had not
 * written is gone, from journal, cache, run directory and all. It boots again on the same disk, and must find there and
 * in the store every record and commit whose acknowledgement had reached this machine. The store is a disk of its own,
 * which loses its power as well. Needs no kernel of this machine's, always a guest.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { PowerCut, runInGuest } from "../kernel/guest.ts";
import { type Figures, monotonicMs } from "./figures.ts";
import { pause } from "./laboratory.ts";
import { type LifeOrder, type LifeReport, reportMark } from "./machine-life.ts";

const lifePath = fileURLToPath(new URL("machine-life.ts", import.meta.url));
const diskBytes = 2 * 1024 ** 3;
/** Longest time from the first acknowledgement of a life to its end. */
const lifeMs = 6000;
const lifeTimeoutMs = 240_000;

export interface PowerLossRun {
  rounds: number;
  seed: number;
  seconds: number;
  figures: Figures;
  say: (line: string) => void;
  /** Where it fails, the disks are left, also as they were when the power went. */
  keepsEvidence?: boolean;
}

export async function powerLoss({
  rounds,
  seed,
  seconds,
  figures,
  say,
  keepsEvidence = false,
}: PowerLossRun): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "s3block-power-"));
  const random = new SeededRandom(seed);
  const endMs = monotonicMs() + seconds * 1000;
  const clear = (): void => rmSync(directory, { recursive: true, force: true });
  process.once("exit", clear);
  let isWell = false;
  try {
    const disks = ["node", "store"].map((name) => makeDisk(join(directory, name)));
    let order: LifeOrder = { isFirst: true, isLast: false, acknowledged: {} };
    for (let round = 1; round <= rounds && monotonicMs() < endMs; round += 1) {
      order = await liveAndLosePower(order, { disks, random, figures, keepsEvidence });
      say(`power loss ${round}`);
    }
    await live({ ...order, isLast: true }, disks, () => {});
    isWell = true;
  } finally {
    if (keepsEvidence && !isWell) say(`the disks, and copies of when the power went, are left in ${directory}`);
    else clear();
    process.off("exit", clear);
  }
}

function makeDisk(path: string): string {
  writeFileSync(path, "");
  execFileSync("truncate", ["-s", String(diskBytes), path]);
  execFileSync("mkfs.ext4", ["-q", "-F", path], { env: { PATH: "/usr/sbin:/sbin:/usr/bin:/bin" } });
  return path;
}

/** One life that ends by power loss; the order for the next one. */
async function liveAndLosePower(
  order: LifeOrder,
  {
    disks,
    random,
    figures,
    keepsEvidence,
  }: { disks: readonly string[]; random: SeededRandom; figures: Figures; keepsEvidence: boolean },
): Promise<LifeOrder> {
  const acknowledged = { ...order.acknowledged };
  const power = new AbortController();
  let isCutting = false;
  const onReport = (report: LifeReport): void => {
    figures.count("acknowledged commits", report.acknowledged - (acknowledged[report.user] ?? 0));
    acknowledged[report.user] = report.acknowledged;
    if (isCutting) return;
    isCutting = true;
    void pause(random.fraction() * lifeMs).then(() => power.abort());
  };
  const ended = await live(order, disks, onReport, power.signal).catch((error: unknown) => error);
  if (!(ended instanceof PowerCut)) throw ended instanceof Error ? ended : new Error("the machine ended by itself");
  if (keepsEvidence) for (const disk of disks) execFileSync("cp", ["--sparse=always", disk, `${disk}.cut`]);
  figures.count("power losses");
  return { isFirst: false, isLast: false, acknowledged };
}

/** Runs machine-life.ts to its end, or until its power is cut. */
async function live(
  order: LifeOrder,
  disks: readonly string[],
  onReport: (report: LifeReport) => void,
  powerCut?: AbortSignal,
): Promise<void> {
  let rest = "";
  const { status, output, kernelLog } = await runInGuest({
    command: [process.execPath, lifePath, JSON.stringify(order)],
    disks,
    memoryMib: 3072,
    timeoutMs: lifeTimeoutMs,
    powerCut,
    onOutput: (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith(reportMark)) onReport(JSON.parse(line.slice(reportMark.length)) as LifeReport);
      }
    },
  });
  if (status !== 0) throw new Error(`a life ended with status ${status}:\n${output.slice(-6000)}\n${kernelLog}`);
}
