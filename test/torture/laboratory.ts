/**
 * What every scenario on one kernel is given: rounds to run, random numbers by seed, a time at which to stop, figures
 * to fill in; and what they do to a cluster: loads under which it dies, deaths of processes and machines, checks of
 * what is left. Needs root and a kernel with nbd (test/kernel).
 */
import { readdir, readFile, rm } from "node:fs/promises";
import { nullLog } from "../../src/base/log.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { listMounts, mountAt } from "../../src/host/mount.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";
import { type Claim, insist } from "../e2e/claim.ts";
import type { Cluster, ClusterNode } from "../e2e/cluster.ts";
import { run } from "../e2e/content.ts";
import { type Figures, monotonicMs } from "./figures.ts";

export interface Torture {
  readonly rounds: number;
  readonly random: SeededRandom;
  readonly figures: Figures;
  /** No round begins after this time of the monotonic clock. */
  readonly endMs: number;
  readonly say: (line: string) => void;
}

/** The numbers of the rounds, for as long as there is time. */
export function* roundsOf(torture: Torture): Generator<number> {
  for (let round = 1; round <= torture.rounds && monotonicMs() < torture.endMs; round += 1) yield round;
}

export function pause(ms: number): Promise<void> {
  return systemClock.sleep(ms);
}

/** Starts the server and resolves once it serves all devices again. */
export async function reviveServer(node: ClusterNode, claims: readonly Claim[]): Promise<void> {
  node.server.launch();
  await untilServed(node, claims);
}

/** Resolves once a new life of the server serves all devices, with the time at which it said so (milliseconds of 1970). */
export async function untilServed({ server }: ClusterNode, claims: readonly Claim[]): Promise<number> {
  const times: number[] = [];
  for (const { volumeId } of claims) {
    const line = await server.logged("the kernel's connection is renewed", (each) => each["volumeId"] === volumeId);
    times.push(Date.parse(String(line["time"])));
  }
  return Math.max(...times);
}

export interface MachineCrash {
  /** Of these volumes the node loses what it had on its disk; of the others it keeps what the processes left. */
  lost?: readonly Claim[];
  /** The users of the volumes, which were sent SIGKILL. */
  dying?: Promise<unknown>;
}

/**
 * The machine falls and comes back: no process says goodbye, and what the kernel has not written to its devices is gone,
 * with devices, mounts and /run. All its claims must be given.
 */
export async function crashMachine(
  cluster: Cluster,
  claims: readonly Claim[],
  { lost = [], dying }: MachineCrash,
): Promise<void> {
  const [node] = cluster.nodes;
  await Promise.all([node.server.stop("SIGKILL"), node.service.stop("SIGKILL")]);
  const kernel = await openKernelNbd({ clock: systemClock, log: nullLog });
  const gone = claims.map(async ({ volumeId }) => {
    const backendIdentifier = `s3block:${node.id}:${volumeId}`;
    const device = kernel.findByBackend(backendIdentifier);
    if (device !== undefined) await kernel.disconnect({ index: device.index, backendIdentifier, force: true });
  });
  await dying;
  for (const claim of claims) {
    for (const path of [claim.target, claim.staging]) {
      if (mountAt(await listMounts(), path) !== undefined) await run("umount", [path]);
    }
  }
  await Promise.all(gone);
  await rm(node.path("run"), { recursive: true });
  for (const { volumeId } of lost) await rm(node.path("state/journal", volumeId), { recursive: true });
  if (lost.length > 0) await loseCache(node);
  await Promise.all([node.server.start(), node.service.start()]);
  await node.service.logged("the node is registered");
  for (const claim of claims) for (const step of claim.up().slice(1)) await insist(step);
}

/** Everything of the state directory that is no journal. */
async function loseCache(node: ClusterNode): Promise<void> {
  for (const name of await readdir(node.path("state"))) {
    if (name !== "journal") await rm(node.path("state", name), { recursive: true });
  }
}

/** Runs the filesystem's checker on a claim that a pod uses, past all mounts, and has it mounted again. */
export async function checkFilesystem(claim: Claim): Promise<void> {
  const mount = mountAt(await listMounts(), claim.staging);
  if (mount === undefined) throw new Error(`${claim.staging} is not mounted`);
  await insist(() => claim.unpublishFromPod());
  await run("umount", [claim.staging]);
  if (mount.fileSystem === "ext4") await run("fsck.ext4", ["-fn", mount.source]);
  else await run("xfs_repair", ["-n", mount.source]);
  for (const step of claim.up().slice(1)) await insist(step);
}

/** Lines of the kernel's log about errors of devices and filesystems. */
export async function countComplaints(): Promise<number> {
  const { stdout } = await run("dmesg", [], { maxBuffer: 64 * 1024 ** 2 });
  return (stdout.match(/I\/O error|EXT4-fs error|XFS.*(corruption|shut)/gi) ?? []).length;
}

/** Throws where the kernel has seen an error since `before`. */
export async function mustNotComplain(before: number): Promise<void> {
  const found = await countComplaints();
  if (found > before) {
    const { stdout } = await run("dmesg", [], { maxBuffer: 64 * 1024 ** 2 });
    throw new Error(`the kernel complained ${found - before} times:\n${stdout.split("\n").slice(-30).join("\n")}`);
  }
}

/** Bytes of memory that the process holds. */
export async function residentBytes(pid: number | undefined): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
}
