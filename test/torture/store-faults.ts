/**
 * A real S3 server goes wrong under mounted filesystems with verified loads: it is ended, slow, answers errors, loses
 * answers, sends bodies that break off or rot, refuses the keys; and the machine's clock is set a day forth or back.
 * Now and then the driver's server is killed while it lasts. Users may wait, and never see an error: each fault ends,
 * they write again, and in the end everything is in the store.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Claim } from "../e2e/claim.ts";
import { Cluster } from "../e2e/cluster.ts";
import { run } from "../e2e/content.ts";
import { VerifiedLoad } from "../e2e/verified-load.ts";
import { type S3Server, startS3Server } from "../suites/s3-server.ts";
import { FaultProxy, wayFaults } from "./fault-proxy.ts";
import { monotonicMs } from "./figures.ts";
import {
  checkFilesystem,
  countComplaints,
  crashMachine,
  mustNotComplain,
  pause,
  reviveServer,
  roundsOf,
  type Torture,
} from "./laboratory.ts";
import { LedgerProcess } from "./ledger-process.ts";

const shortestFaultMs = 2000;
const longestFaultMs = 6000;
/** Small: each of its reads is a request to the store. */
const loadKib = 256;
const dayMs = 86_400_000;

/** One round in so many the driver's server is killed while the fault lasts. */
const killEvery = 3;

interface Scene {
  cluster: Cluster;
  claims: readonly Claim[];
  ledgers: readonly LedgerProcess[];
  proxy: FaultProxy;
  s3: S3Server;
}

type Fault = (scene: Scene, lasting: () => Promise<void>) => Promise<void>;

/** By name; each does its harm, waits for `lasting`, and undoes it. */
const faults: Readonly<Record<string, Fault>> = {
  ...Object.fromEntries(wayFaults.map((fault) => [fault, onTheWay(fault)])),
  "server ended": async (scene, lasting) => {
    const { root, port } = scene.s3;
    await scene.s3.stop();
    await lasting();
    scene.s3 = await startS3Server({ root, port });
  },
  "clock a day forth": (_, lasting) => withClockOff(dayMs, lasting),
  "clock a day back": (_, lasting) => withClockOff(-dayMs, lasting),
};

function onTheWay(fault: (typeof wayFaults)[number]): Fault {
  return async ({ proxy }, lasting) => {
    proxy.fault = fault;
    await lasting();
    proxy.fault = undefined;
  };
}

/** Only where the clock is our own: in a guest. Elsewhere nothing happens. */
async function withClockOff(byMs: number, lasting: () => Promise<void>): Promise<void> {
  const offsetMs = Date.now() - monotonicMs();
  if (process.env["S3BLOCK_GUEST"] === "1") await setClock(offsetMs + byMs + monotonicMs());
  await lasting();
  if (process.env["S3BLOCK_GUEST"] === "1") await setClock(offsetMs + monotonicMs());
}

async function setClock(ms: number): Promise<void> {
  await run("date", ["--set", `@${(ms / 1000).toFixed(3)}`]);
}

/** All faults in turns, or those that are named. */
export async function tortureByStore(torture: Torture, names: readonly string[] = Object.keys(faults)): Promise<void> {
  await onS3(torture, async (scene) => {
    for (const round of roundsOf(torture)) {
      const name = names[(round - 1) % names.length];
      await runFault(torture, scene, { name, kills: round % killEvery === 0 });
      torture.say(`round ${round}: ${name}`);
    }
  });
}

async function runFault(
  { random, figures }: Torture,
  scene: Scene,
  { name, kills }: { name: string; kills: boolean },
): Promise<void> {
  const { cluster, claims, ledgers } = scene;
  const [node] = cluster.nodes;
  let revived: Promise<void> = Promise.resolve();
  await faults[name](scene, async () => {
    await pause(shortestFaultMs + random.fraction() * (longestFaultMs - shortestFaultMs));
    if (!kills) return;
    await node.server.stop("SIGKILL");
    figures.count("SIGKILLs of the server in a fault");
    revived = reviveServer(node, claims);
    await pause(random.fraction() * longestFaultMs);
  });
  const startMs = monotonicMs();
  await revived;
  await Promise.all(ledgers.map((ledger) => ledger.untilAcknowledged()));
  figures.sample(
    kills ? "until users write again, server killed (ms)" : "until users write again (ms)",
    monotonicMs() - startMs,
  );
  figures.count(`rounds: ${name}`);
}

async function onS3(torture: Torture, work: (scene: Scene) => Promise<void>): Promise<void> {
  const root = await mountRoot();
  const s3 = await startS3Server({ root });
  const proxy = new FaultProxy(s3.port, torture.random);
  const storeFlags = [`--store=s3://${s3.bucket}/torture`, `--s3-endpoint=${await proxy.listen()}`];
  const environment = { AWS_ACCESS_KEY_ID: s3.accessKeyId, AWS_SECRET_ACCESS_KEY: s3.secretAccessKey };
  // Without a cache every read of what is not in the journal goes to the store.
  const cluster = await Cluster.start({ storeFlags, environment, serverFlags: ["--cache-size=0"] });
  const claims = (["ext4", "xfs"] as const).map((use) => new Claim(cluster, { name: `store-${use}`, use }));
  const ledgers: LedgerProcess[] = [];
  const scene: Scene = { cluster, claims, ledgers, proxy, s3 };
  try {
    for (const claim of claims) {
      await claim.bringUp();
      const ledger = new LedgerProcess(join(claim.target, "ledger"));
      await ledger.prepare();
      ledger.start();
      ledgers.push(ledger);
    }
    const complaints = await countComplaints();
    const loads = claims.map((claim) => new VerifiedLoad(join(claim.target, "file"), { sizeKib: loadKib }));
    await work(scene);
    for (const ledger of ledgers) {
      await ledger.stop();
      torture.figures.count("synced records", ledger.takeCount());
    }
    await Promise.all(loads.map((load) => load.stop()));
    for (const { writes, errors } of loads) {
      torture.figures.count("verified writes of fio", writes);
      torture.figures.count("errors that fio met", errors);
    }
    await mustNotComplain(complaints);
    await mustHoldAll(scene, () => crashMachine(cluster, claims, { lost: claims }));
    for (const claim of claims) await claim.remove();
  } catch (error) {
    torture.say(cluster.report());
    throw error;
  } finally {
    for (const [name, count] of proxy.counts) torture.figures.count(`way to the store: ${name}`, count);
    for (const ledger of ledgers) if (ledger.isRunning) void ledger.kill();
    await cluster.close();
    await proxy.close();
    await scene.s3.stop();
    await run("umount", [root]);
    for (const path of [root, `${root}.image`]) await rm(path, { recursive: true });
  }
}

/** Checkers clean and acknowledged records there, on this machine and on one that has nothing but the store. */
async function mustHoldAll({ claims, ledgers }: Scene, loseMachine: () => Promise<void>): Promise<void> {
  for (const isFirst of [true, false]) {
    if (!isFirst) await loseMachine();
    for (const [index, claim] of claims.entries()) {
      await checkFilesystem(claim);
      await ledgers[index].mustHold();
    }
  }
}

/** A directory for the server's files: it keeps metadata in extended attributes of users, which a tmpfs has not. */
async function mountRoot(): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), "s3block-torture-s3-"));
  await run("truncate", ["-s", "1G", `${root}.image`]);
  await run("mkfs.ext4", ["-q", `${root}.image`]);
  await run("modprobe", ["loop"]);
  await run("mount", ["-o", "loop", `${root}.image`, root]);
  return root;
}
