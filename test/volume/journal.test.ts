/** The journal: what comes back after which kind of end, how syncs are shared, how its files go round. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { type Log, nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { encodeFileHeader, EXTENT_DATA } from "../../src/volume/format/journal-record.ts";
import { Journal } from "../../src/volume/journal.ts";
import { readJournal } from "./read-journal.ts";

const BLOCK = 4096;
const FILE_BYTES = 256 * 1024;
const uid = "00112233445566778899aabbccddeeff";

let opened = 0;

interface Entry {
  sequence: number;
  lba: number;
  blocks: number;
  kind: number;
  position: number;
}

async function openJournal(disk: MemoryDisk, limitBytes = 4 * FILE_BYTES): Promise<Journal> {
  opened += 1;
  return await Journal.open({
    disk,
    uid,
    random: new SeededRandom(opened),
    log: nullLog,
    limitBytes,
    fileBytes: FILE_BYTES,
  });
}

async function begun(disk: MemoryDisk, limitBytes?: number): Promise<Journal> {
  const journal = await openJournal(disk, limitBytes);
  await journal.begin(1);
  return journal;
}

async function recovered(disk: MemoryDisk, durable = 0): Promise<{ journal: Journal; entries: Entry[] }> {
  const journal = await openJournal(disk);
  const entries: Entry[] = [];
  // After a loss of power with nothing synced, not even a header may be left.
  if (!journal.hasHistory) return { journal, entries };
  await journal.recover({ durableSequence: durable, clientWaits: false }, (record, position) => {
    const { lba, blockCount: blocks, kind } = record.extents[0];
    entries.push({ sequence: record.sequence, lba, blocks, kind, position });
  });
  return { journal, entries };
}

async function append(journal: Journal, lba: number, source: Buffer): Promise<number> {
  while (!journal.hasRoom(source.length / BLOCK)) await journal.waitForRoom();
  const position = journal.append(1, lba, source.length / BLOCK, source);
  journal.commit();
  return position;
}

test("a journal that has begun is found again, whatever a loss of power takes", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  const random = new SeededRandom(1);
  const after = disk.crash({ bytes: (count) => random.bytes(count), fraction: () => 0 });
  const next = await openJournal(after);
  assert.ok(next.hasHistory);
  assert.deepEqual(next.journalId, journal.journalId);
  await next.close();
});

test("records come back in order after the death of the process, and appending goes on", async () => {
  let disk = new MemoryDisk();
  let journal = await begun(disk);
  const random = new SeededRandom(2);
  const written: { lba: number; source: Buffer }[] = [];
  for (let turn = 0; turn < 40; turn += 1) {
    const source = random.bytes(BLOCK * (1 + random.below(6)));
    await append(journal, turn * 10, source);
    written.push({ lba: turn * 10, source });
    if (turn === 20) {
      journal.append(1, 5, 1_000_000);
      journal.commit();
      written.push({ lba: 5, source: Buffer.alloc(0) });
    }
  }
  for (let round = 0; round < 3; round += 1) {
    disk = disk.reopen();
    const { journal: next, entries } = await recovered(disk);
    journal = next;
    assert.deepEqual(
      entries.map(({ sequence, lba }) => [sequence, lba]),
      written.map(({ lba }, index) => [index + 1, lba]),
    );
    for (const [index, entry] of entries.entries()) {
      if (entry.kind !== EXTENT_DATA) continue;
      assert.ok(readJournal(journal, entry.position, entry.lba, entry.blocks).equals(written[index].source));
    }
    const source = random.bytes(BLOCK);
    await append(journal, 7000 + round, source);
    written.push({ lba: 7000 + round, source });
  }
});

test("a tail cut or changed at any byte costs the records from there on, never one before, and invents none", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  const random = new SeededRandom(3);
  const ends: number[] = [];
  for (let turn = 0; turn < 6; turn += 1) {
    await append(journal, turn, random.bytes(BLOCK));
    ends.push(journal.position - FILE_BYTES);
  }
  const file = await disk.open("0000000000000001.journal");
  const image = Buffer.alloc(FILE_BYTES);
  file.readSync(image, 0);
  const from = ends[2];
  for (let at = from; at < ends[5]; at += at % 4176 < 96 ? 1 : 61) {
    for (const damage of ["cut", "flip"] as const) {
      const damaged = Buffer.from(image);
      if (damage === "cut") damaged.fill(0, at);
      else damaged[at] ^= 1 << random.below(8);
      const copy = new MemoryDisk();
      const target = await copy.open("0000000000000001.journal", { create: true });
      target.writeSync(damaged, 0);
      const { entries } = await recovered(copy);
      const whole = ends.filter((end) => end <= at).length;
      // Zeroes that are cut off may have been zeroes before: the padding of a record's head, the end of a block.
      const isUnchanged = damaged.equals(image);
      assert.equal(
        entries.length,
        isUnchanged ? 6 : Math.max(whole, sameUpTo(image, damaged, ends)),
        `${damage} at ${at}`,
      );
    }
  }
});

/** How many records end before the first byte that differs. */
function sameUpTo(image: Buffer, damaged: Buffer, ends: readonly number[]): number {
  const first = image.findIndex((byte, at) => byte !== damaged[at]);
  return ends.filter((end) => end <= first).length;
}

test("what was synced survives a loss of power, by seed", async () => {
  for (let seed = 1; seed <= 60; seed += 1) {
    const random = new SeededRandom(seed);
    const disk = new MemoryDisk();
    const journal = await begun(disk, 16 * FILE_BYTES);
    let synced = 0;
    let durable = 0;
    const ends = [0];
    const count = 5 + random.below(60);
    for (let turn = 1; turn <= count; turn += 1) {
      await append(journal, turn, random.bytes(BLOCK * (1 + random.below(8))));
      ends.push(journal.position);
      if (random.below(6) === 0) {
        await journal.sync();
        synced = turn;
      }
      if (random.below(10) > 0) continue;
      // The row goes round: the store has taken some more.
      durable = Math.max(durable, turn - random.below(8));
      journal.release(ends[durable]);
    }
    const { entries } = await recovered(disk.crash(random), durable);
    const sequences = entries.map(({ sequence }) => sequence);
    assert.deepEqual(
      sequences,
      Array.from({ length: sequences.length }, (_, index) => durable + 1 + index),
    );
    assert.ok(
      (sequences.at(-1) ?? durable) >= synced || synced <= durable,
      `seed ${seed}: synced ${synced}, back to ${sequences.at(-1)}`,
    );
  }
});

test("syncs that are asked for together are shared, and cover what was appended before they were asked for", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  let syncs = 0;
  disk.setFault((call) => {
    if (call.operation === "sync") syncs += 1;
  });
  const waits: Promise<void>[] = [];
  for (let turn = 0; turn < 20; turn += 1) {
    await append(journal, turn, Buffer.alloc(BLOCK, turn));
    for (const wait of [journal.sync(), journal.sync()]) if (wait !== undefined) waits.push(wait);
  }
  await Promise.all(waits);
  assert.ok(syncs >= 1 && syncs <= 22, `${syncs} syncs`);
  assert.equal(journal.sync(), undefined);
  const { entries } = await recovered(disk.crash(new SeededRandom(9)));
  assert.equal(entries.length, 20);
});

test("a sync that starts as another ends never answers before its own data is durable", async () => {
  for (let seed = 0; seed < 30; seed += 1) {
    const random = new SeededRandom(seed);
    const disk = new MemoryDisk();
    const journal = await begun(disk);
    let promised = 0;
    const lanes = Array.from({ length: 4 }, async (_, lane) => {
      for (let turn = 0; turn < 10; turn += 1) {
        await append(journal, lane * 100 + turn, Buffer.alloc(BLOCK, lane));
        const { sequence } = journal;
        await journal.sync();
        promised = Math.max(promised, sequence);
      }
    });
    const crashAfter = random.below(200);
    for (let turn = 0; turn < crashAfter; turn += 1) await Promise.resolve();
    const mustHold = promised;
    const after = disk.crash(random);
    await Promise.allSettled(lanes);
    const { entries } = await recovered(after);
    assert.ok(entries.length >= mustHold, `seed ${seed}: ${entries.length} of ${mustHold}`);
  }
});

test("a failed sync makes the journal distrusted for ever", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  await append(journal, 1, Buffer.alloc(BLOCK, 1));
  disk.setFault((call) => {
    if (call.operation === "sync") throw new OperationError("unavailable", "i/o error");
  });
  await assert.rejects(async () => await journal.sync(), { kind: "unavailable" });
  disk.setFault(undefined);
  await assert.rejects(async () => await journal.sync(), { kind: "unavailable" });
  assert.ok(journal.distrusted);
  const position = await append(journal, 2, Buffer.alloc(BLOCK, 2));
  assert.equal(readJournal(journal, position, 2, 1)[0], 2, "it still serves what it holds");
});

test("files go round within the limit, and one file is enough where the disk has no room for two", async () => {
  for (const capacityBytes of [undefined, FILE_BYTES + 64 * 1024]) {
    const disk = new MemoryDisk(capacityBytes === undefined ? {} : { capacityBytes });
    const journal = await begun(disk, 3 * FILE_BYTES);
    const source = new SeededRandom(4).bytes(BLOCK * 8);
    for (let turn = 0; turn < 200; turn += 1) {
      while (!journal.hasRoom(8)) {
        const room = journal.waitForRoom();
        journal.release(journal.position);
        await room;
      }
      journal.append(1, turn, 8, source);
      const names = (await disk.list()).filter((name) => name.endsWith(".journal"));
      assert.ok(names.length <= 3, names.join(" "));
    }
    await journal.close();
  }
});

test("a process that dies while it begins to use its only file again leaves a journal that goes on", async () => {
  const disk = new MemoryDisk({ capacityBytes: FILE_BYTES + 64 * 1024 });
  const journal = await begun(disk, 3 * FILE_BYTES);
  const source = new SeededRandom(4).bytes(BLOCK * 8);
  while (journal.hasRoom(8)) await append(journal, journal.sequence, source);
  const { journalId, sequence } = journal;
  const room = journal.waitForRoom();
  journal.release(journal.position);
  await room;
  assert.deepEqual(await disk.list(), ["0000000000000002.journal"]);

  const next = await recovered(disk.reopen(), sequence);
  assert.deepEqual(next.journal.journalId, journalId);
  assert.deepEqual(next.entries, []);
  await append(next.journal, 7, source);
  const last = await recovered(disk.reopen(), sequence);
  assert.deepEqual(
    last.entries.map(({ lba }) => lba),
    [7],
  );
  await last.journal.close();
});

test("a disk without room is asked again now and then, and told of once; nothing is left of the attempts", async () => {
  const disk = new MemoryDisk({ capacityBytes: FILE_BYTES + 64 * 1024 });
  let warnings = 0;
  let attempts = 0;
  const log: Log = { ...nullLog, warn: () => (warnings += 1), child: () => log };
  const options = { disk, uid, random: new SeededRandom(6), log, limitBytes: 4 * FILE_BYTES, fileBytes: FILE_BYTES };
  const journal = await Journal.open(options);
  await journal.begin(1);
  disk.setFault((call) => {
    if (call.operation === "open") attempts += 1;
  });
  for (let turn = 0; journal.hasRoom(1); turn += 1) {
    journal.append(1, turn, 1, Buffer.alloc(BLOCK, 1));
    for (let pause = 0; pause < 20; pause += 1) await Promise.resolve();
  }
  assert.ok(attempts > 2 && attempts <= 16, `${attempts} attempts`);
  assert.equal(warnings, 1);
  assert.deepEqual(await disk.list(), ["0000000000000001.journal"]);
  disk.setCapacity(8 * FILE_BYTES);
  await journal.waitForRoom();
  assert.ok(journal.hasRoom(1));
  await journal.close();
});

test("what is appended can be read at once, and outlives the process from its commit on", async () => {
  const random = new SeededRandom(31);
  for (const uncommitted of [1, 7, 200]) {
    const disk = new MemoryDisk();
    const journal = await begun(disk, 8 * FILE_BYTES);
    const written: { lba: number; source: Buffer; position: number }[] = [];
    const take = async (count: number): Promise<void> => {
      for (let turn = 0; turn < count; turn += 1) {
        const source = random.bytes(BLOCK * (1 + random.below(3)));
        while (!journal.hasRoom(source.length / BLOCK)) await journal.waitForRoom();
        const lba = written.length * 10;
        written.push({ lba, source, position: journal.append(1, lba, source.length / BLOCK, source) });
        for (const back of [1, 2, 60]) {
          const entry = written.at(-back);
          if (entry === undefined) continue;
          const found = readJournal(journal, entry.position, entry.lba, entry.source.length / BLOCK);
          assert.ok(found.equals(entry.source), `record ${written.length - back} of ${written.length}`);
        }
      }
    };
    await take(9);
    journal.commit();
    await take(uncommitted);
    const { entries } = await recovered(disk.reopen());
    assert.ok(entries.length >= 9 && entries.length <= written.length, `${entries.length} of ${written.length}`);
    assert.deepEqual(
      entries.map(({ lba }) => lba),
      written.slice(0, entries.length).map(({ lba }) => lba),
    );
  }
});

test("where the disk fails a commit, what it did not take is still read, and never passes as safe", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  const safe = new SeededRandom(1).bytes(BLOCK);
  const lost = new SeededRandom(2).bytes(BLOCK * 2);
  const safeAt = await append(journal, 1, safe);
  disk.setFault((call) => {
    if (call.operation === "write") throw new OperationError("unavailable", "input/output error");
  });
  const lostAt = journal.append(1, 5, 2, lost);
  for (let turn = 0; turn < 2; turn += 1) assert.throws(() => journal.commit(), { kind: "unavailable" });
  await assert.rejects(async () => await journal.sync(), { kind: "unavailable" });
  assert.throws(() => journal.append(1, 9, 1, safe), { kind: "unavailable" });
  assert.ok(readJournal(journal, lostAt, 5, 2).equals(lost));
  assert.ok(readJournal(journal, safeAt, 1, 1).equals(safe));
  await journal.close();
  const { entries } = await recovered(disk.reopen());
  assert.deepEqual(
    entries.map(({ lba }) => lba),
    [1],
  );
});

test("rot in the journal is found when it is read", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  const position = await append(journal, 3, new SeededRandom(5).bytes(BLOCK * 3));
  const file = await disk.open("0000000000000001.journal");
  const byte = Buffer.alloc(1);
  const at = position - FILE_BYTES + 4112 + 200;
  file.readSync(byte, at);
  byte[0] ^= 8;
  file.writeSync(byte, at);
  readJournal(journal, position, 3, 1);
  assert.throws(() => readJournal(journal, position + 4112, 4, 1), { kind: "corrupt" });
});

test("a journal of another volume is not replayed, and one set aside stays for people to see", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  await append(journal, 1, Buffer.alloc(BLOCK, 1));
  const other = await Journal.open({
    disk: disk.reopen(),
    uid: uid.replace("00", "ff"),
    random: new SeededRandom(1),
    log: nullLog,
    limitBytes: 4 * FILE_BYTES,
  });
  assert.equal(other.hasHistory, false);
  const again = disk.reopen();
  const own = await openJournal(again);
  assert.ok(own.hasHistory);
  const { journalId } = own;
  const kept = await own.setAside();
  await own.begin(1);
  assert.ok(!own.journalId.equals(journalId));
  for (const name of kept) assert.ok((await again.list()).includes(name));
  assert.deepEqual((await recovered(again.reopen())).entries, []);
});

test("a journal that lacks what follows the store's last write is set aside, not replayed with a hole", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  for (let turn = 0; turn < 100; turn += 1) await append(journal, turn, Buffer.alloc(BLOCK, turn));
  const next = disk.reopen();
  await next.remove("0000000000000001.journal");
  const { journal: successor, entries } = await recovered(next, 10);
  assert.deepEqual(entries, []);
  assert.equal(successor.sequence, 10);
  assert.ok((await next.list()).includes("0000000000000001-0000000000000002.quarantine"));
});

test("records behind a torn one never come back, also not when a later loss of power takes what replaced it", async () => {
  let disk = new MemoryDisk();
  let journal = await begun(disk);
  await append(journal, 10, Buffer.alloc(BLOCK, 1));
  const torn = await append(journal, 20, Buffer.alloc(4 * BLOCK, 2));
  await append(journal, 30, Buffer.alloc(BLOCK, 3));
  await journal.sync();
  disk = disk.reopen();
  const [name] = disk.paths();
  disk.damage(name, (torn % FILE_BYTES) + BLOCK, Buffer.from("torn"));
  const first = await recovered(disk);
  assert.deepEqual(
    first.entries.map(({ lba }) => lba),
    [10],
  );
  journal = first.journal;
  await append(journal, 40, Buffer.alloc(BLOCK, 4));
  // The record was not synced here, but S3 has it; now the power goes, and with it everything unsynced.
  disk = disk.crash({ fraction: () => 0.5, bytes: (length) => Buffer.alloc(length) });
  const second = await recovered(disk, 2);
  assert.deepEqual(second.entries, []);
  assert.equal(second.journal.sequence, 2);
});

test("a file whose header does not continue the records before it is never appended to", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  for (let turn = 0; turn < 10; turn += 1) await append(journal, turn, Buffer.alloc(BLOCK, turn));
  const { journalId } = journal;
  const next = disk.reopen();
  // The right journal, number and sequence, but another record before it: as a file of a history that was cut off.
  const header = { uid, journalId, fileNumber: 2, firstSequence: 11, chain: 0x1234, begins: false };
  const forged = await next.open("0000000000000002.journal", { create: true });
  await forged.allocate(FILE_BYTES);
  forged.writeSync(encodeFileHeader({ ...header, fileBytes: FILE_BYTES }), 0);
  const { journal: successor, entries } = await recovered(next);
  assert.equal(entries.length, 10);
  await append(successor, 77, Buffer.alloc(BLOCK, 77));
  await successor.close();
  // The store has taken the first ten meanwhile: reading begins at the file that holds the eleventh.
  const { entries: later } = await recovered(next.reopen(), 10);
  assert.deepEqual(
    later.map(({ sequence, lba }) => [sequence, lba]),
    [[11, 77]],
  );
});

test("what is flushed after a reopening is durable, though a sync before it had failed", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  const random = new SeededRandom(9);
  for (let turn = 0; turn < 100; turn += 1) await append(journal, turn, random.bytes(BLOCK));
  disk.setFault(({ operation }) => {
    if (operation === "sync") throw new OperationError("unavailable", "the disk fails");
  });
  await assert.rejects(async () => journal.sync(), /not trusted/);
  const healed = disk.reopen();
  healed.setFault(() => undefined);
  const { journal: next, entries } = await recovered(healed);
  assert.equal(entries.length, 100);
  await next.sync();
  const after = healed.crash({ bytes: (count) => random.bytes(count), fraction: () => 0 });
  assert.equal((await recovered(after)).entries.length, 100);
});
