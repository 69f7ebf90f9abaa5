/**
 * The node's own disk goes wrong under volumes in use: it fills up (journal and cache find no room) and has room again,
 * the cache's bytes rot while they are used, the server is killed and starts on a full disk or on a rotten cache. Users
 * of mounted filesystems wait at most. And journals are damaged by hand between the death of the machine and its
 * return: bits flipped, bytes cut off, files gone. With durability "s3" every flush is there all the same; with "local"
 * the device is at least as it was at one moment, never a mixture of two. Or they rot under a server that is dead alone:
 * then the device that waits for it may not go on as if nothing had been lost.
 */
import { readFileSync } from "node:fs";
import { open, readdir, rm, stat, statfs, truncate } from "node:fs/promises";
import { join } from "node:path";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { Claim } from "../e2e/claim.ts";
import { Cluster, type ClusterNode } from "../e2e/cluster.ts";
import { run } from "../e2e/content.ts";
import { endOfJournal } from "../suites/journal-end.ts";
import { VerifiedLoad } from "../e2e/verified-load.ts";
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

const stateBytes = 512 * 1024 ** 2;
const fullMs = 3000;
const bitsPerRound = 40;

interface Scene {
  cluster: Cluster;
  node: ClusterNode;
  /** ext4 with durability "s3"; a bare device with "s3"; one with "local". */
  claims: readonly Claim[];
  ledgers: readonly LedgerProcess[];
}

const faults: Readonly<Record<string, (scene: Scene, torture: Torture) => Promise<void>>> = {
  "disk full": fullDisk,
  "rotten cache": rottenCache,
  "journal damaged by hand": damagedJournal,
  "journal rotten under a device": rottenUnderDevice,
};

/** All faults in turns, or those that are named. */
export async function tortureByDisk(torture: Torture, names: readonly string[] = Object.keys(faults)): Promise<void> {
  await onScene(torture, async (scene) => {
    for (const round of roundsOf(torture)) {
      const name = names[(round - 1) % names.length];
      await faults[name](scene, torture);
      torture.figures.count(`rounds: ${name}`);
      torture.say(`round ${round}: ${name}`);
    }
  });
}

/** The disk fills up under loads; every second time the server is killed and starts while it is full. */
async function fullDisk(scene: Scene, { random, figures }: Torture): Promise<void> {
  const { node } = scene;
  await underLoad(scene, figures, async () => {
    const filler = node.path("state", "filler");
    await fill(node.path("state"), filler);
    await pause(random.fraction() * fullMs);
    if (random.below(2) === 0) {
      await node.server.stop("SIGKILL");
      figures.count("starts of a server on a full disk");
      await reviveServer(node, scene.claims);
      await pause(random.fraction() * fullMs);
    }
    await rm(filler);
  });
}

/** Takes all the room on the disk of `directory`, while others take some too. */
async function fill(directory: string, filler: string): Promise<void> {
  for (let spare = 0; spare < 2 ** 24; spare += 2 ** 20) {
    const { bavail, bsize } = await statfs(directory);
    const isFilled = await run("fallocate", ["-l", String(Math.max(bsize, bavail * bsize - spare)), filler]).then(
      () => true,
      () => false,
    );
    if (isFilled) return;
    await rm(filler, { force: true });
  }
  throw new Error("the disk cannot be filled");
}

/** Bits of what the cache keeps flip while it is used, and once more while the server is away. */
async function rottenCache(scene: Scene, { random, figures }: Torture): Promise<void> {
  const { node, claims } = scene;
  const files = await cacheFiles(node);
  await underLoad(scene, figures, async () => {
    for (const file of files) figures.count("bits flipped in the cache", await flipBits(file, random));
    await pause(500);
    await node.server.stop("SIGKILL");
    for (const file of files) figures.count("bits flipped in the cache", await flipBits(file, random));
    await reviveServer(node, claims);
  });
}

async function cacheFiles(node: ClusterNode): Promise<string[]> {
  const entries = await readdir(node.path("state"), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => !path.includes("/journal/") && path.includes("cache"));
}

/** The machine dies under the ledgers, its journals are damaged, and it comes back. */
async function damagedJournal(scene: Scene, { random, figures }: Torture): Promise<void> {
  const { cluster, node, claims, ledgers } = scene;
  for (const ledger of ledgers) ledger.start();
  await Promise.all(ledgers.map((ledger) => ledger.untilAcknowledged(3)));
  await pause(random.fraction() * 2000);
  await node.server.stop("SIGKILL");
  const dying = Promise.all(ledgers.map((ledger) => ledger.kill()));
  for (const { volumeId } of claims) {
    const directory = node.path("state/journal", volumeId);
    for (const name of await readdir(directory)) {
      if (random.below(3) > 0) figures.count(await damage(join(directory, name), random));
    }
  }
  await crashMachine(cluster, claims, { dying });
  const [onFilesystem, onDevice, onLocal] = ledgers;
  await checkFilesystem(claims[0]);
  await onFilesystem.mustHold();
  await onDevice.mustHoldMoment();
  const moment = await onLocal.moment();
  if (moment === undefined) throw new Error("a device of durability local was never like this at once");
  figures.count(
    "records that a damaged journal of durability local has cost",
    Math.max(0, onLocal.acknowledged - moment),
  );
  onLocal.acknowledged = moment;
}

/**
 * The server dies, a bit near the end of a journal turns, and it comes back to a device that has waited in between: that
 * goes on where nothing is lost, or answers errors until it is detached. Attached again it is as it was at one moment.
 */
async function rottenUnderDevice({ node, claims, ledgers }: Scene, { random, figures }: Torture): Promise<void> {
  const [claim, ledger] = [claims[2], ledgers[2]];
  ledger.start();
  await ledger.untilAcknowledged(3 + random.below(60));
  await node.server.stop("SIGKILL");
  const directory = node.path("state/journal", claim.volumeId);
  const names = (await readdir(directory)).filter((name) => name.endsWith(".journal"));
  const last = endOfJournal(names, (name) => readFileSync(join(directory, name)));
  if (last === undefined) throw new Error("a ledger was kept and the journal is empty");
  await flipBit(join(directory, last.name), last.end - 1 - random.below(Math.min(last.end, 40_000)), random);
  node.server.launch();
  const goesOn = await ledger.untilAcknowledged().then(
    () => true,
    () => false,
  );
  figures.count(goesOn ? "devices that went on over a turned bit" : "devices that answered errors for a turned bit");
  if (goesOn) {
    await ledger.stop();
    await ledger.mustHoldMoment();
    return;
  }
  await claim.bringDown();
  await claim.bringUp();
  const moment = await ledger.moment();
  if (moment === undefined) throw new Error("a device with a rotten journal was never like this at once");
  figures.count("records that turned bits have cost", Math.max(0, ledger.acknowledged - moment));
  ledger.acknowledged = moment;
}

async function flipBit(path: string, at: number, random: SeededRandom): Promise<void> {
  const file = await open(path, "r+");
  try {
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, at);
    byte[0] ^= 1 << random.below(8);
    await file.write(byte, 0, 1, at);
  } finally {
    await file.close();
  }
}

/** Answers what it did. */
async function damage(path: string, random: SeededRandom): Promise<string> {
  const { size } = await stat(path);
  switch (random.below(3)) {
    case 0:
      await rm(path);
      return "journal files removed";
    case 1:
      await truncate(path, random.below(size));
      return "journal files cut";
    default:
      await flipBits(path, random);
      return "journal files with flipped bits";
  }
}

/** Flips some bits in the part of the file that is in use; how many. */
async function flipBits(path: string, random: SeededRandom): Promise<number> {
  const file = await open(path, "r+");
  try {
    const { size, blocks } = await file.stat();
    const used = Math.min(size, blocks * 512);
    if (used === 0) return 0;
    for (let turn = 0; turn < bitsPerRound; turn += 1) {
      const byte = Buffer.alloc(1);
      const at = random.below(used);
      await file.read(byte, 0, 1, at);
      byte[0] ^= 1 << random.below(8);
      await file.write(byte, 0, 1, at);
    }
    return bitsPerRound;
  } finally {
    await file.close();
  }
}

/** Runs `harm` under a verified load on the filesystem and ledgers on all; none of them may see an error. */
async function underLoad(
  { claims, ledgers }: Scene,
  figures: Torture["figures"],
  harm: () => Promise<void>,
): Promise<void> {
  const complaints = await countComplaints();
  const load = new VerifiedLoad(join(claims[0].target, "file"), { firstSeed: ledgers[0].acknowledged + 1 });
  for (const ledger of ledgers) ledger.start();
  await Promise.all(ledgers.map((ledger) => ledger.untilAcknowledged()));
  await harm();
  await Promise.all(ledgers.map((ledger) => ledger.untilAcknowledged()));
  await load.stop();
  for (const ledger of ledgers) {
    await ledger.stop();
    figures.count("synced records", ledger.takeCount());
  }
  figures.count("verified writes of fio", load.writes);
  figures.count("errors that fio met", load.errors);
  await run("sh", ["-c", "echo 3 >/proc/sys/vm/drop_caches"]);
  for (const ledger of ledgers) await ledger.mustHold();
  await mustNotComplain(complaints);
}

async function onScene(torture: Torture, work: (scene: Scene) => Promise<void>): Promise<void> {
  const serverFlags = ["--journal-size=192MiB", "--cache-size=128MiB"];
  const cluster = await Cluster.start({ serverFlags });
  const [node] = cluster.nodes;
  let ledgers: LedgerProcess[] = [];
  try {
    await node.server.stop("SIGTERM");
    await run("mount", ["-t", "tmpfs", "-o", `size=${stateBytes}`, "tmpfs", node.path("state")]);
    await node.server.start();
    const small = 64 * 1024 ** 2;
    const claims = [
      new Claim(cluster, { name: "disk-s3" }),
      new Claim(cluster, { name: "device-s3", use: "block", sizeBytes: small }),
      new Claim(cluster, {
        name: "device-local",
        use: "block",
        sizeBytes: small,
        parameters: { durability: "local" },
      }),
    ];
    for (const claim of claims) await claim.bringUp();
    ledgers = claims.map(({ target, options }) => {
      return new LedgerProcess(options.use === "block" ? target : join(target, "ledger"));
    });
    await ledgers[0].prepare();
    await work({ cluster, node, claims, ledgers });
    await checkFilesystem(claims[0]);
    for (const claim of claims) await claim.remove();
  } catch (error) {
    torture.say(cluster.report());
    throw error;
  } finally {
    for (const ledger of ledgers) if (ledger.isRunning) void ledger.kill();
    await cluster.close();
  }
}
