/**
 * A crash checker of blocks and files. The kernel's dm-log-writes stands between a filesystem and our device and logs
 * every write and flush, while a database commits, the server is killed now and then, and each acknowledged commit is
 * marked in the log. Then the machine dies with its disk.
 * - What comes back from the store must be, sector by sector, at least what the last flush in the log left.
 * - Its filesystem is clean, and the database holds every commit that was acknowledged.
 * - The same is asked of the log replayed to flushes on the way: those are the states in which a crash at any other
 *   moment would have left the device.
 * Needs the modules dm-mod, dm-log-writes and loop; the guest's kernel has them.
 */
import { mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Claim } from "../e2e/claim.ts";
import { Cluster } from "../e2e/cluster.ts";
import { run } from "../e2e/content.ts";
import { SqliteApplication } from "./application.ts";
import { type BlockLog, judge, readBlockLog, replay } from "./block-log.ts";
import { crashMachine, pause, reviveServer, roundsOf, type Torture } from "./laboratory.ts";

const sizeBytes = 32 * 1024 ** 2;
const logBytes = 512 * 1024 ** 2;
const mapping = "torture-log";
const marksPerRound = 12;
const replaysPerRound = 8;
const crashMark = "crash";

interface Scene {
  cluster: Cluster;
  claim: Claim;
  /** Where the filesystem over the log is mounted. */
  mountPath: string;
  /** The file behind the log's loop device. */
  logPath: string;
  imagePath: string;
}

export async function tortureByLog(torture: Torture): Promise<void> {
  for (const name of ["loop", "dm-mod", "dm-log-writes"]) await run("modprobe", [name]);
  const cluster = await Cluster.start();
  const [node] = cluster.nodes;
  const scene = {
    cluster,
    mountPath: node.path("logged"),
    logPath: node.path("write-log"),
    imagePath: node.path("image"),
  };
  try {
    await mkdir(scene.mountPath);
    for (const round of roundsOf(torture)) {
      const claim = new Claim(cluster, { name: `logged-${round}`, use: "block", sizeBytes });
      await claim.bringUp();
      await runRound(torture, { ...scene, claim });
      await claim.remove();
      torture.figures.count("rounds");
      torture.say(`round ${round}`);
    }
  } catch (error) {
    torture.say(cluster.report());
    throw error;
  } finally {
    await cluster.close();
  }
}

async function runRound(torture: Torture, scene: Scene): Promise<void> {
  const { figures } = torture;
  const { claim, imagePath, mountPath } = scene;
  const acknowledged = await liveLogged(torture, scene);
  const log = readBlockLog(scene.logPath);
  const crash = log.entries.findLastIndex(({ mark }) => mark === crashMark);
  figures.count("logged entries", log.entries.length);
  const verdict = judge(log, await readFile(claim.target), crash);
  figures.count("sectors newer than the last flush", verdict.newer);
  figures.count("sectors out of the log's order since the last flush", verdict.reordered);
  if (verdict.faults.length > 0) {
    throw new Error(`the device is not what was flushed:\n${verdict.faults.slice(0, 10).join("\n")}`);
  }
  await mustHoldCommits(claim.target, mountPath, acknowledged);
  figures.count("commits that survived", acknowledged);
  await rm(imagePath, { force: true });
  await writeFile(imagePath, "");
  await run("truncate", ["-s", String(sizeBytes), imagePath]);
  await replayOnTheWay(torture, { log, crash, scene });
}

/** Lives with the log beneath until the machine dies; the number of the last commit that was acknowledged. */
async function liveLogged({ random, figures }: Torture, scene: Scene): Promise<number> {
  const { claim, cluster, mountPath, logPath } = scene;
  const [node] = cluster.nodes;
  await rm(logPath, { force: true });
  await writeFile(logPath, "");
  await run("truncate", ["-s", String(logBytes), logPath]);
  const loop = (await run("losetup", ["--find", "--show", logPath])).stdout.trim();
  const table = `0 ${sizeBytes / 512} log-writes ${claim.target} ${loop}`;
  await run("dmsetup", ["create", mapping, "--noudevsync", "--noudevrules", "--table", table]);
  await run("dmsetup", ["mknodes", mapping]);
  await run("mkfs.ext4", ["-q", "-E", "nodiscard", `/dev/mapper/${mapping}`]);
  await run("mount", [`/dev/mapper/${mapping}`, mountPath]);
  const database = new SqliteApplication(join(mountPath, "database"), random.below(2) === 0 ? "wal" : "delete");
  await database.start();
  const killAt = random.below(marksPerRound);
  for (let turn = 0; turn < marksPerRound; turn += 1) {
    await database.untilCommitted(1 + random.below(3));
    await run("dmsetup", ["message", mapping, "0", "mark", `commit-${database.record.acknowledged}`]);
    if (turn === killAt) {
      await node.server.stop("SIGKILL");
      figures.count("SIGKILLs of the server");
      await reviveServer(node, [claim]);
    }
  }
  await pause(random.fraction() * 500);
  await run("dmsetup", ["message", mapping, "0", "mark", crashMark]);
  const { acknowledged } = database.record;
  const dying = takeDown(scene, loop, database.kill());
  await crashMachine(cluster, [claim], { lost: [claim], dying });
  return acknowledged;
}

/** What stands on the device goes as soon as the device has gone. */
async function takeDown({ mountPath, cluster }: Scene, loop: string, killed: Promise<void>): Promise<void> {
  await cluster.nodes[0].server.end();
  await killed;
  await run("umount", [mountPath]);
  await run("dmsetup", ["remove", mapping, "--noudevsync"]);
  await run("losetup", ["--detach", loop]);
}

/** Replays the log to some of its flushes, and looks at the filesystem and the database each time. */
async function replayOnTheWay(
  { random, figures }: Torture,
  { log, crash, scene }: { log: BlockLog; crash: number; scene: Scene },
): Promise<void> {
  const { imagePath, mountPath } = scene;
  const isAfterStart = log.entries.findIndex(({ mark }) => mark?.startsWith("commit-") === true);
  const flushes = [...log.entries.keys()].filter((index) => {
    return index > isAfterStart && index < crash && log.entries[index].isFlush;
  });
  while (flushes.length > replaysPerRound) flushes.splice(random.below(flushes.length), 1);
  let from = 0;
  for (const to of flushes) {
    replay(log, imagePath, { from, to });
    from = to;
    const copy = `${imagePath}.copy`;
    await run("cp", ["--sparse=always", imagePath, copy]);
    const marks = log.entries.slice(0, to).flatMap(({ mark }) => (mark?.startsWith("commit-") ? [mark] : []));
    await mustHoldCommits(copy, mountPath, Number(marks.at(-1)?.slice("commit-".length) ?? 0));
    await rm(copy);
    figures.count("replays to a flush");
  }
}

/** The filesystem on the device or file is clean once its journal is replayed, and the database holds its commits. */
async function mustHoldCommits(device: string, mountPath: string, commits: number): Promise<void> {
  const isFile = (await stat(device)).isFile();
  await run("mount", [...(isFile ? ["-o", "loop"] : []), device, mountPath]);
  const database = new SqliteApplication(join(mountPath, "database"), "wal");
  database.record.acknowledged = commits;
  database.record.begun = Number.MAX_SAFE_INTEGER;
  try {
    await database.start();
  } finally {
    await database.kill();
    await run("umount", [mountPath]);
  }
  await run("fsck.ext4", ["-fn", device]);
}
