/**
 * One life of a machine between two power losses, in a guest of power-loss.ts: mounts its disks, starts the processes of
 * the driver, brings its volumes up again, checks what the users of the volumes find against what they had been told,
 * and lets them go on until the power goes. In its last life it checks and takes everything away.
 * As a program: `machine-life.ts ORDER` (JSON); each acknowledgement is a line of JSON behind `reportMark`, a LifeReport.
 */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";
import { Claim } from "../e2e/claim.ts";
import { Cluster } from "../e2e/cluster.ts";
import { run } from "../e2e/content.ts";
import { type Application, SqliteApplication } from "./application.ts";
import { checkFilesystem } from "./laboratory.ts";

export interface LifeOrder {
  isFirst: boolean;
  isLast: boolean;
  /** The last commit of each user whose acknowledgement came out of the machine. */
  acknowledged: Record<string, number>;
}

/** Told for the first time when all users have found what they must. */
export interface LifeReport {
  user: string;
  acknowledged: number;
}

/** What a line with a report begins with. */
export const reportMark = "==report ";

const machinePath = "/run/machine";

const claimOptions = [
  { name: "power-s3-ext4", use: "ext4" },
  { name: "power-s3-xfs", use: "xfs" },
  { name: "power-local-ext4", use: "ext4", parameters: { durability: "local" } },
] as const;

async function main(order: LifeOrder): Promise<void> {
  await mkdir(machinePath);
  await run("mount", ["/dev/ubda", machinePath]);
  await mkdir(join(machinePath, "store"), { recursive: true });
  await run("mount", ["/dev/ubdb", join(machinePath, "store")]);
  // A machine forgets /run when it falls.
  await rm(join(machinePath, "e2e-a/run"), { recursive: true, force: true });
  const storeFlags = [`--store=file://${join(machinePath, "store/objects")}`];
  const cluster = await Cluster.start({ directory: machinePath, storeFlags });
  const claims = claimOptions.map((options) => new Claim(cluster, options));
  try {
    for (const claim of claims) await claim.bringUp();
    if (!order.isFirst) for (const claim of claims) await checkFilesystem(claim);
    const users = claims.map((claim) => new SqliteApplication(join(claim.target, "database"), "wal"));
    for (const [index, { record }] of users.entries()) {
      record.acknowledged = order.acknowledged[claimOptions[index].name] ?? 0;
      // What was begun or even acknowledged last may not have come out of the machine.
      record.begun = Number.MAX_SAFE_INTEGER;
    }
    await Promise.all(users.map((user) => user.start()));
    if (order.isLast) {
      for (const user of users) await user.kill();
      for (const claim of claims) await claim.remove();
      return;
    }
    await tellOn(users);
  } catch (error) {
    process.stdout.write(cluster.report());
    throw error;
  }
}

/** Tells of every new acknowledgement until the power goes. */
async function tellOn(users: readonly Application[]): Promise<void> {
  await Promise.all(
    users.map(async (user, index) => {
      for (;;) {
        const report: LifeReport = { user: claimOptions[index].name, acknowledged: user.record.acknowledged };
        process.stdout.write(`${reportMark}${JSON.stringify(report)}\n`);
        await user.untilCommitted(1);
      }
    }),
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(JSON.parse(process.argv[2]) as LifeOrder).catch((error: unknown) => {
    process.stdout.write(`${describe(error)}\n`);
    process.exit(1);
  });
  process.exit();
}
