/** Journals set aside: nothing of them is lost whenever the machine dies, and the room that they take is bounded. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { Journal } from "../../src/volume/journal.ts";

const BLOCK = 4096;
const FILE_BYTES = 128 * 1024;
const LIMIT_BYTES = 8 * FILE_BYTES;
const uid = "00112233445566778899aabbccddeeff";

async function openJournal(disk: MemoryDisk, seed: number): Promise<Journal> {
  const random = new SeededRandom(seed);
  return await Journal.open({ disk, uid, random, log: nullLog, limitBytes: LIMIT_BYTES, fileBytes: FILE_BYTES });
}

/** Appends records that fill `files` files, and makes them durable. */
async function fill(journal: Journal, files: number, value: number): Promise<void> {
  for (let turn = 0; turn < files * 30 - 15; turn += 1) {
    while (!journal.hasRoom(1)) await journal.waitForRoom();
    journal.append(1, turn, 1, Buffer.alloc(BLOCK, value));
  }
  await journal.sync();
}

/** Every file that holds a record, by its content; zeroes at the end do not count. */
async function contents(disk: MemoryDisk, suffix: string): Promise<Set<string>> {
  const found = new Set<string>();
  for (const name of await disk.list()) {
    if (!name.endsWith(suffix)) continue;
    const file = await disk.open(name);
    const bytes = Buffer.alloc(file.sizeBytes());
    file.readSync(bytes, 0);
    await file.close();
    if (bytes.some((byte) => byte !== 0)) found.add(bytes.toString("latin1"));
  }
  return found;
}

async function sizeOf(disk: MemoryDisk, suffix: string): Promise<number> {
  let bytes = 0;
  for (const name of await disk.list()) {
    if (!name.endsWith(suffix)) continue;
    const file = await disk.open(name);
    bytes += file.sizeBytes();
    await file.close();
  }
  return bytes;
}

/** Sets the journal aside and begins another; the machine dies at the operation `dieAt` of the disk. */
async function setAside(disk: MemoryDisk, seed: number, dieAt: number): Promise<"done" | "died"> {
  let count = 0;
  disk.setFault(({ operation }) => {
    if (!["rename", "remove", "sync-directory", "allocate", "write", "sync"].includes(operation)) return;
    count += 1;
    if (count >= dieAt) throw new OperationError("unavailable", "the machine is dead");
  });
  try {
    const journal = await openJournal(disk, seed);
    if (journal.hasHistory) {
      await journal.setAside();
      await journal.begin(1);
    }
    await journal.close();
    return "done";
  } catch {
    return "died";
  } finally {
    disk.setFault(undefined);
  }
}

test("a machine that dies at any moment of setting a journal aside loses no file of it, nor of an earlier one", async () => {
  let deaths = 0;
  for (let round = 0; round < 48; round += 1) {
    const random = new SeededRandom(round);
    const dieAt = 1 + (round % 24);
    let disk = new MemoryDisk();
    const first = await openJournal(disk, 1);
    await first.begin(1);
    await fill(first, 2, 0x11);
    disk = disk.reopen();
    assert.equal(await setAside(disk, 2, Number.POSITIVE_INFINITY), "done");
    const second = await openJournal(disk, 3);
    await second.recover({ durableSequence: 0, clientWaits: false }, () => undefined);
    await fill(second, 4, 0x22);
    disk = disk.reopen();
    const mustStay = new Set([...(await contents(disk, ".quarantine")), ...(await contents(disk, ".journal"))]);
    assert.ok(mustStay.size >= 6);
    let outcome = await setAside(disk, 4, dieAt);
    for (let again = 0; outcome === "died" && again < 3; again += 1) {
      deaths += 1;
      disk = disk.crash(random);
      outcome = await setAside(disk, 5 + again, again === 2 ? Number.POSITIVE_INFINITY : dieAt + random.below(4));
    }
    assert.equal(outcome, "done");
    const kept = await contents(disk, ".quarantine");
    for (const content of mustStay) assert.ok(kept.has(content), `a file is lost, the machine died at ${dieAt}`);
  }
  assert.ok(deaths > 30, `${deaths} deaths`);
});

test("set-aside journals take no more room than one journal may: the oldest go, the newest stays whole", async () => {
  let disk = new MemoryDisk();
  for (let round = 1; round <= 9; round += 1) {
    // The volume was closed in order in between: the names of the journal's files begin again.
    const journal = await openJournal(disk, round + 1);
    await journal.begin(1);
    await fill(journal, 3, round);
    disk = disk.reopen();
    const newest = await contents(disk, ".journal");
    assert.equal(await setAside(disk, round + 100, Number.POSITIVE_INFINITY), "done");
    assert.ok((await sizeOf(disk, ".quarantine")) <= LIMIT_BYTES);
    const kept = await contents(disk, ".quarantine");
    for (const content of newest) assert.ok(kept.has(content));
    const successor = await openJournal(disk, round + 200);
    await successor.remove();
  }
  assert.equal((await contents(disk, ".quarantine")).size, 8);
});
