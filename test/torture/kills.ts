/**
 * Processes of the driver die by SIGKILL at random moments, the server of data above all, under loads on ext4 and xfs
 * that read back what they wrote and a ledger on each. No load may see an error; every acknowledged record is there.
 * How long a kill stalls users: the longest that any record took which was not acknowledged when the kill came, until
 * the ledgers write again.
 */
import { Claim, insist } from "../e2e/claim.ts";
import { Cluster } from "../e2e/cluster.ts";
import type { DriverProcess } from "../e2e/process.ts";
import { VerifiedLoad } from "../e2e/verified-load.ts";
import { monotonicMs } from "./figures.ts";
import {
  checkFilesystem,
  countComplaints,
  crashMachine,
  mustNotComplain,
  pause,
  residentBytes,
  reviveServer,
  roundsOf,
  type Torture,
  untilServed,
} from "./laboratory.ts";
import { LedgerProcess } from "./ledger-process.ts";

/** Longest time from the users' recovery to the next kill. */
const quietMs = 1500;
/**
 * After so many rounds everything stops and is looked at, and the volumes are made anew: nothing collects what is
 * overwritten, and the guest's memory is the store.
 */
const inspectionRounds = 25;
/** In so many rounds there is one each of the deaths that are not the serving process's alone. */
const wayEvery = 10;

interface User {
  claim: Claim;
  ledger: LedgerProcess;
  load: VerifiedLoad;
}

/**
 * The process that serves dies and its standby goes on; in other rounds another one dies at once after it, or all
 * processes of the server, or its supervisor.
 */
export async function killServer(torture: Torture): Promise<void> {
  const { figures } = torture;
  await onCluster(torture, ["--standby=true"], async (cluster, claims, round) => {
    const [node] = cluster.nodes;
    const { server } = node;
    const startMs = Date.now();
    const way = wayOf(round);
    figures.count(`rounds: ${way}`);
    if (way === "all processes of the server die") {
      await server.stop("SIGKILL");
      server.launch();
    } else if (way === "the supervisor dies") {
      server.signal("SIGKILL");
      await server.end();
      server.launch();
    } else {
      server.killServing();
    }
    if (way === "two die") {
      await server.logged("a process serves");
      await pause(torture.random.fraction() * 2000);
      server.killServing();
    }
    const awayMs = (await untilServed(node, claims)) - startMs;
    figures.sample(`away: ${way} (ms)`, awayMs);
    return { name: `stall: ${way} (ms)`, awayMs };
  });
}

type Way = "the serving process dies" | "two die" | "all processes of the server die" | "the supervisor dies";

function wayOf(round: number): Way {
  if (round % wayEvery === 0) return "two die";
  if (round % wayEvery === 3) return "all processes of the server die";
  return round % wayEvery === 6 ? "the supervisor dies" : "the serving process dies";
}

/** Any of the three processes dies, or several, or all at once; controller and node service answer calls afterwards. */
export async function killAny(torture: Torture): Promise<void> {
  await onCluster(torture, [], async (cluster, claims) => {
    const [node] = cluster.nodes;
    const processes: DriverProcess[] = [node.server, node.service, cluster.controller];
    const chosen = processes.filter(() => torture.random.below(2) === 0);
    const victims = chosen.length === 0 || torture.random.below(4) === 0 ? processes : chosen;
    await Promise.all(victims.map((each) => each.stop("SIGKILL")));
    for (const { command } of victims) torture.figures.count(`SIGKILLs of ${command}`);
    if (victims.length === processes.length) torture.figures.count("rounds in which all died at once");
    const revivals = victims.map((each) => (each === node.server ? reviveServer(node, claims) : each.start()));
    await Promise.all(revivals);
    for (const claim of claims) for (const step of claim.up()) await insist(step);
    return { name: victims.includes(node.server) ? "stall (ms)" : "stall where the server lived on (ms)" };
  });
}

/** The answer: under which name the stall counts, and how long no server was there, where that is known. */
type Strike = (cluster: Cluster, claims: readonly Claim[], round: number) => Promise<{ name: string; awayMs?: number }>;

async function onCluster(torture: Torture, serverFlags: readonly string[], strike: Strike): Promise<void> {
  const cluster = await Cluster.start({ serverFlags });
  let users: User[] = [];
  try {
    const complaints = await countComplaints();
    users = await putToWork(cluster);
    for (const round of roundsOf(torture)) {
      await untilAllWrite(users);
      if (serverFlags.length > 0) await cluster.nodes[0].server.logged("a standby is there");
      await pause(torture.random.fraction() * quietMs);
      await runRound(torture, { cluster, users, round, strike });
      if (round % 10 === 0) torture.say(`round ${round}`);
      if (round % inspectionRounds === 0) {
        await rest(torture, users);
        await inspect(users, complaints);
        torture.figures.count("inspections in between");
        for (const { claim } of users) await claim.remove();
        users = await putToWork(cluster);
      }
    }
    await rest(torture, users);
    torture.figures.sample(
      "memory of the server at the end (bytes)",
      await residentBytes(cluster.nodes[0].server.servingPid),
    );
    await inspect(users, complaints);
    const claims = users.map(({ claim }) => claim);
    await crashMachine(cluster, claims, { lost: claims });
    for (const { ledger } of users) await ledger.mustHold();
    for (const { claim } of users) await claim.remove();
  } catch (error) {
    torture.say(cluster.report());
    throw error;
  } finally {
    for (const { ledger } of users) if (ledger.isRunning) void ledger.kill();
    await cluster.close();
  }
}

async function runRound(
  { figures }: Torture,
  { cluster, users, round, strike }: { cluster: Cluster; users: User[]; round: number; strike: Strike },
): Promise<void> {
  for (const { ledger } of users) ledger.longestWaitSince(0);
  const strikeMs = monotonicMs();
  const { name, awayMs } = await strike(
    cluster,
    users.map(({ claim }) => claim),
    round,
  );
  await untilAllWrite(users);
  const stallMs = Math.max(...users.map(({ ledger }) => ledger.longestWaitSince(strikeMs)));
  figures.sample(name, stallMs);
  if (awayMs !== undefined) figures.sample("stall beyond the server's absence (ms)", Math.max(0, stallMs - awayMs));
  figures.count("rounds");
  if (users.some(({ load }) => !load.isRunning)) throw new Error("a verified load has ended with an error");
}

/** New volumes, each with its users. */
async function putToWork(cluster: Cluster): Promise<User[]> {
  const claims = (["ext4", "xfs"] as const).map((use) => new Claim(cluster, { name: `torture-${use}`, use }));
  for (const claim of claims) await claim.bringUp();
  const users = claims.map((claim) => ({ claim, ledger: new LedgerProcess(`${claim.target}/ledger`) }));
  for (const { ledger } of users) await ledger.prepare();
  for (const { ledger } of users) ledger.start();
  return users.map((user) => ({ ...user, load: new VerifiedLoad(`${user.claim.target}/file`) }));
}

function untilAllWrite(users: readonly User[]): Promise<unknown> {
  return Promise.all(users.map(({ ledger }) => ledger.untilAcknowledged()));
}

async function rest({ figures }: Torture, users: readonly User[]): Promise<void> {
  for (const { ledger, load } of users) {
    await load.stop();
    await ledger.stop();
    figures.count("verified writes of fio", load.writes);
    figures.count("errors that fio met", load.errors);
    figures.sample("longest wait of fio between inspections (ms)", load.longestWaitMs);
    figures.count("synced records", ledger.takeCount());
  }
}

/** Checker clean, every acknowledged record there, read from the device. */
async function inspect(users: readonly User[], complaints: number): Promise<void> {
  for (const { claim, ledger } of users) {
    await checkFilesystem(claim);
    await ledger.mustHold();
  }
  await mustNotComplain(complaints);
}
