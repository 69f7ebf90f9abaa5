/**
 * Databases on volumes die with what is beneath them, again and again, and must hold every commit that they have
 * acknowledged. One half of the deaths is of processes: SIGKILL of the databases and the server at once, the
 * filesystem stays mounted. The other half is of the machine: the device is torn away too, so that nothing which the
 * kernel only had in memory comes back; where flushes are in the store (durability "s3") every second time with the
 * loss of the node's disk.
 */
import { join } from "node:path";
import { Claim } from "../e2e/claim.ts";
import { Cluster, type ClusterNode } from "../e2e/cluster.ts";
import { type Application, SqliteApplication } from "./application.ts";
import { checkFilesystem, crashMachine, pause, reviveServer, roundsOf, type Torture } from "./laboratory.ts";
import { installPostgres, PostgresApplication } from "./postgres.ts";

/** Longest life of the databases between two deaths. */
const lifeMs = 1500;
const commitsPerLife = 5;
/**
 * After so many rounds everything is looked at, and volumes and databases are made anew: nothing collects what is
 * overwritten, and the guest's memory is the store.
 */
const inspectionRounds = 50;

interface Site {
  claim: Claim;
  applications: readonly Application[];
}

/** Two databases on ext4 with durability "s3", two on xfs with "local"; each pair one with a WAL and one without. */
export async function tortureSqlite(torture: Torture): Promise<void> {
  await torturing(torture, async (claims) => {
    const modes = ["wal", "delete"] as const;
    return claims.map((claim) => ({
      claim,
      applications: modes.map((mode) => new SqliteApplication(join(claim.target, `${mode}.db`), mode)),
    }));
  });
}

/** A PostgreSQL on each. */
export async function torturePostgres(torture: Torture): Promise<void> {
  installPostgres(torture.say);
  await torturing(torture, async (claims, node) => {
    const sites: Site[] = [];
    for (const [index, claim] of claims.entries()) {
      const application = new PostgresApplication(join(claim.target, "postgres"), node.path(`sockets-${index}`));
      await application.prepare();
      sites.push({ claim, applications: [application] });
    }
    return sites;
  });
}

async function torturing(
  torture: Torture,
  settle: (claims: readonly Claim[], node: ClusterNode) => Promise<Site[]>,
): Promise<void> {
  const cluster = await Cluster.start();
  let sites: Site[] = [];
  try {
    const [node] = cluster.nodes;
    sites = await settleOn(cluster, (claims) => settle(claims, node));
    for (const round of roundsOf(torture)) {
      await liveOn(torture, sites);
      await die(torture, { cluster, sites, round });
      if (round % 10 === 0) torture.say(`round ${round}`);
      if (round % inspectionRounds === 0) {
        await inspect(sites);
        torture.figures.count("inspections in between");
        sites = await settleOn(cluster, (claims) => settle(claims, node));
      }
    }
    await inspect(sites);
  } catch (error) {
    torture.say(cluster.report());
    throw error;
  } finally {
    // A process that waits in the kernel goes when its device does.
    const killed = killAll(sites);
    await cluster.close();
    await killed;
  }
}

/** New volumes with new databases. */
async function settleOn(cluster: Cluster, settle: (claims: readonly Claim[]) => Promise<Site[]>): Promise<Site[]> {
  const claims = [
    new Claim(cluster, { name: "database-s3", use: "ext4" }),
    new Claim(cluster, { name: "database-local", use: "xfs", parameters: { durability: "local" } }),
  ];
  for (const claim of claims) await claim.bringUp();
  return await settle(claims);
}

/** The databases hold what they must, the checkers are content, and all is removed. */
async function inspect(sites: readonly Site[]): Promise<void> {
  await startAll(sites);
  await killAll(sites);
  for (const { claim } of sites) await checkFilesystem(claim);
  for (const { claim } of sites) await claim.remove();
}

/** Starts the databases, which checks them, and lets them commit for a while. */
async function liveOn({ random, figures }: Torture, sites: readonly Site[]): Promise<void> {
  const before = sumOfCommits(sites);
  await startAll(sites);
  await onAll(sites, (application) => application.untilCommitted(random.below(commitsPerLife)));
  await pause(random.fraction() * lifeMs);
  figures.count("acknowledged commits", sumOfCommits(sites) - before);
}

async function die(
  torture: Torture,
  { cluster, sites, round }: { cluster: Cluster; sites: readonly Site[]; round: number },
): Promise<void> {
  const { figures, random } = torture;
  const [node] = cluster.nodes;
  const claims = sites.map(({ claim }) => claim);
  const victims = [() => killAll(sites), () => node.server.stop("SIGKILL")];
  if (random.below(2) === 0) victims.reverse();
  const dying = Promise.all(victims.map((kill) => kill()));
  const databases = sites.flatMap(({ applications }) => applications).length;
  figures.count("deaths of databases, each with the server", databases);
  if (round % 2 === 0) {
    await node.server.stop("SIGKILL");
    await reviveServer(node, claims);
    await dying;
    figures.count("rounds: processes died");
    return;
  }
  const [s3] = claims;
  const losesDisk = round % 4 === 1;
  await crashMachine(cluster, claims, { lost: losesDisk ? [s3] : [], dying });
  figures.count(losesDisk ? "rounds: the machine died, its disk was lost" : "rounds: the machine died");
}

async function startAll(sites: readonly Site[]): Promise<void> {
  await onAll(sites, (application) => application.start());
}

async function killAll(sites: readonly Site[]): Promise<void> {
  await onAll(sites, (application) => application.kill());
}

async function onAll(sites: readonly Site[], work: (application: Application) => Promise<void>): Promise<void> {
  await Promise.all(sites.flatMap(({ applications }) => applications.map(work)));
}

function sumOfCommits(sites: readonly Site[]): number {
  return sites.flatMap(({ applications }) => applications).reduce((sum, { record }) => sum + record.acknowledged, 0);
}
