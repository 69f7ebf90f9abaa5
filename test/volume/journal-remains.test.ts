/**
 * A journal that is read while a client waits: what was damaged since the process died is refused, exactly where a
 * record is lost by it; what a dying process or a loss of power leaves is never taken for damage.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { COMMIT_MARK_BYTES, FILE_HEADER_BYTES } from "../../src/volume/format/journal-record.ts";
import { Journal } from "../../src/volume/journal.ts";

const BLOCK = 4096;
const PAGE = 4096;
const FILE_BYTES = 256 * 1024;
const uid = "00112233445566778899aabbccddeeff";
const random = new SeededRandom(1);

type Recovered = { journal: Journal; sequences: number[] } | "refused" | "no journal";

async function openJournal(disk: MemoryDisk): Promise<Journal> {
  return await Journal.open({ disk, uid, random, log: nullLog, limitBytes: 4 * FILE_BYTES, fileBytes: FILE_BYTES });
}

async function begun(disk: MemoryDisk): Promise<Journal> {
  const journal = await openJournal(disk);
  await journal.begin(1);
  return journal;
}

async function recovered(disk: MemoryDisk, clientWaits: boolean, durableSequence = 0): Promise<Recovered> {
  const journal = await openJournal(disk);
  if (!journal.hasHistory) return "no journal";
  const sequences: number[] = [];
  try {
    await journal.recover({ durableSequence, clientWaits }, ({ sequence }) => sequences.push(sequence));
    return { journal, sequences };
  } catch (error) {
    assert.ok(isKind(error, "corrupt"), String(error));
    await journal.close();
    return "refused";
  }
}

/** Which records come back; fails where they are refused. */
async function mustRecover(disk: MemoryDisk, clientWaits: boolean, durable = 0): Promise<[Journal, number[]]> {
  const found = await recovered(disk, clientWaits, durable);
  assert.ok(typeof found === "object", typeof found === "string" ? found : "");
  return [found.journal, found.sequences];
}

/** One record: data of that many blocks, or zeroes where that is 0. */
async function append(journal: Journal, blocks: number): Promise<void> {
  while (!journal.hasRoom(blocks)) await journal.waitForRoom();
  if (blocks === 0) journal.append(1, random.below(1000), 1 + random.below(100_000));
  else journal.append(1, random.below(1000), blocks, random.bytes(blocks * BLOCK));
}

/** A few commits of a few records each; `last` is the last commit. */
async function fill(journal: Journal, commits: number, last: readonly number[] = [1]): Promise<void> {
  for (let commit = 0; commit < commits; commit += 1) {
    for (let count = 1 + random.below(4); count > 0; count -= 1) await append(journal, [0, 1, 1, 3][random.below(4)]);
    journal.commit();
  }
  for (const blocks of last) await append(journal, blocks);
  journal.commit();
}

function image(disk: MemoryDisk): Map<string, Buffer> {
  return new Map(disk.paths().map((path) => [path, disk.contentOf(path)]));
}

async function diskOf(files: ReadonlyMap<string, Buffer>): Promise<MemoryDisk> {
  const disk = new MemoryDisk();
  for (const [name, content] of files) {
    const file = await disk.open(name, { create: true });
    file.writeSync(content, 0);
    await file.sync();
  }
  await disk.sync();
  return disk;
}

function flipped(content: Buffer, at: number): Buffer {
  const copy = Buffer.from(content);
  copy[at] ^= 1 << random.below(8);
  return copy;
}

function upTo(last: number, first = 1): number[] {
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

const RAW = BLOCK + 16;
const [first, second] = ["0000000000000001.journal", "0000000000000002.journal"];
/** Zeroes and single blocks that end at a page's end: 80 heads of 48 bytes and 16 frames. */
const wholePages = [...Array<number>(64).fill(0), ...Array<number>(16).fill(1)];

for (const [what, last] of [
  ["a block", [1]],
  ["zeroes", [0]],
  ["several blocks", [7]],
  ["blocks and zeroes", [2, 0, 0]],
] as const) {
  test(`one bit that turns is refused where it costs a record, and only there: a journal that ends in ${what}`, async () => {
    const disk = new MemoryDisk();
    const journal = await begun(disk);
    await fill(journal, 12, last);
    const { sequence } = journal;
    const end = (journal.position % FILE_BYTES) + PAGE;
    const files = image(disk);
    let refused = 0;
    for (let trial = 0; trial < 250; trial += 1) {
      // Half of them in the last record and its page, and some where nothing was written.
      const from = trial % 2 === 0 ? end - 3 * PAGE : FILE_HEADER_BYTES;
      const at = from + random.below(end - from + 100);
      const rotten = new Map([...files, [first, flipped(files.get(first)!, at)]]);
      const left = await recovered(await diskOf(rotten), false);
      assert.ok(typeof left === "object");
      const isLost = left.sequences.length < sequence;
      const found = await recovered(await diskOf(rotten), true);
      assert.equal(found === "refused", isLost, `bit of byte ${at} of ${end}`);
      if (isLost) refused += 1;
    }
    assert.ok(refused > 80, `${refused} refused`);
  });
}

test("the last record is missed as well where it ends at a page's end: the mark is in the next page", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  await fill(journal, 0, wholePages);
  const end = journal.position % FILE_BYTES;
  assert.equal(end % PAGE, 0);
  const files = image(disk);
  for (let at = end - RAW; at < end; at += 97) {
    const rotten = new Map([...files, [first, flipped(files.get(first)!, at)]]);
    assert.equal(await recovered(await diskOf(rotten), true), "refused", `byte ${at}`);
  }
  const [next] = await mustRecover(await diskOf(files), true);
  await append(next, 1);
  next.commit();
});

test("what is refused stays as it is, again and again, and goes on without a client", async () => {
  const disk = new MemoryDisk();
  await fill(await begun(disk), 60);
  const files = image(disk);
  assert.ok(files.has(second));
  files.set(first, flipped(files.get(first)!, FILE_HEADER_BYTES + 20_000));
  const rotten = await diskOf(files);
  for (let turn = 0; turn < 3; turn += 1) {
    assert.equal(await recovered(rotten, true), "refused");
    assert.deepEqual(image(rotten), files);
  }
  const [journal, sequences] = await mustRecover(rotten, false);
  assert.ok(sequences.length > 0 && sequences.length < 20, `${sequences.length} come back`);
  assert.ok(rotten.paths().some((path) => path.endsWith(".quarantine")));
  await append(journal, 1);
  journal.commit();
  const [, after] = await mustRecover(rotten.reopen(), true);
  assert.deepEqual(after, upTo(sequences.length + 1));
});

test("a file behind whose header is damaged or gone is looked into", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  while (journal.position < 2 * FILE_BYTES + FILE_HEADER_BYTES) await fill(journal, 1, [0]);
  const files = image(disk);
  const content = files.get(second)!;
  const blank = Buffer.from(content).fill(0, 0, FILE_HEADER_BYTES);
  for (const header of [flipped(content, 44), blank]) {
    assert.equal(await recovered(await diskOf(new Map([...files, [second, header]])), true), "refused");
  }
  // One that was made ready, and holds nothing yet.
  const third = Buffer.alloc(FILE_BYTES).fill("rotten", 0, 60);
  await mustRecover(await diskOf(new Map([...files, ["0000000000000003.journal", third]])), true);
});

test("a file that has begun behind damage is enough, also where it holds no record and the mark is gone", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  while (journal.position < 2 * FILE_BYTES) await fill(journal, 0, [1]);
  const files = image(disk);
  files.get(second)!.fill(0, FILE_HEADER_BYTES);
  const full = files.get(first)!;
  const end = full.findLastIndex((byte) => byte !== 0) + 1 - COMMIT_MARK_BYTES;
  full.fill(0, end);
  const last = full.findLastIndex((byte) => byte !== 0);
  files.set(first, flipped(full, last - 2000));
  assert.equal(await recovered(await diskOf(files), true), "refused");
});

test("a page that the disk has put back to what it was is refused, though it holds a mark of its own", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  await fill(journal, 5);
  const pageAt = (journal.position % FILE_BYTES) - (journal.position % PAGE);
  const earlier = image(disk)
    .get(first)!
    .subarray(pageAt, pageAt + PAGE);
  await fill(journal, 0, [1, 1, 1]);
  const files = image(disk);
  earlier.copy(files.get(first)!, pageAt);
  assert.equal(await recovered(await diskOf(files), true), "refused");
  files.get(first)!.fill(0, journal.position % FILE_BYTES);
  assert.equal(await recovered(await diskOf(files), true), "refused", "frames are enough");
});

test("what a former process wrote is missed as well where the next one has written nothing", async () => {
  for (const last of [[1], wholePages]) {
    const disk = new MemoryDisk();
    const journal = await begun(disk);
    await fill(journal, 0, last);
    const end = journal.position % FILE_BYTES;
    const [next] = await mustRecover(disk.reopen(), true);
    await next.close();
    const files = image(disk);
    files.set(first, flipped(files.get(first)!, end - 2000));
    assert.equal(await recovered(await diskOf(files), true), "refused");
  }
});

test("a file that was cut short is refused, and is whole again once it was used without a client", async () => {
  const disk = new MemoryDisk();
  await fill(await begun(disk), 10);
  const files = image(disk);
  files.set(first, files.get(first)!.subarray(0, FILE_HEADER_BYTES + 5000));
  files.delete(second);
  const cut = await diskOf(files);
  assert.equal(await recovered(cut, true), "refused");
  const [journal, sequences] = await mustRecover(cut, false);
  await append(journal, 1);
  journal.commit();
  const [, after] = await mustRecover(cut.reopen(), true);
  assert.deepEqual(after, upTo(sequences.length + 1));
});

test("what the store holds is not missed; what it lacks is, also where the store's end cannot be read", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  await fill(journal, 10, [1]);
  const { sequence } = journal;
  const files = image(disk);
  const rotten = new Map([...files, [first, flipped(files.get(first)!, FILE_HEADER_BYTES + 8)]]);
  const [anew, none] = await mustRecover(await diskOf(rotten), true, sequence);
  assert.deepEqual([none, anew.sequence], [[], sequence]);
  assert.equal(await recovered(await diskOf(rotten), true, sequence - 1), "refused");
  // Without the mark of the last commit nobody knows: some frame behind may be newer.
  const end = Math.ceil((journal.position % FILE_BYTES) / PAGE) * PAGE;
  rotten.get(first)!.fill(0, end - COMMIT_MARK_BYTES, end);
  assert.equal(await recovered(await diskOf(rotten), true, sequence), "refused");
});

test("a journal whose file at the store's end is gone is refused", async () => {
  const disk = new MemoryDisk();
  await fill(await begun(disk), 60);
  const files = image(disk);
  files.delete(first);
  assert.equal(await recovered(await diskOf(files), true, 3), "refused");
});

test("a journal without marks is refused where a frame holds behind the damage", async () => {
  const disk = new MemoryDisk();
  const journal = await begun(disk);
  await fill(journal, 10, [1, 1]);
  const end = journal.position % FILE_BYTES;
  const content = Buffer.from(image(disk).get(first)!.fill(0, end));
  content[end - 100] ^= 1;
  await mustRecover(await diskOf(new Map([[first, content]])), true);
  content[end - 100] ^= 1;
  content[end - RAW - 100] ^= 1;
  assert.equal(await recovered(await diskOf(new Map([[first, content]])), true), "refused");
});

test("a write that a dying process cut short, at any byte, is never taken for damage, nor what follows it", async () => {
  for (const last of [[1], [0], [7], [2, 0, 5], wholePages, [55]]) {
    const disk = new MemoryDisk();
    const journal = await begun(disk);
    // The row has gone round: files hold what an earlier use of them left.
    for (let turn = 0; turn < 30; turn += 1) {
      await fill(journal, 3);
      journal.release(journal.position);
    }
    await append(journal, 1);
    journal.commit();
    while (!journal.hasRoom(60)) await journal.waitForRoom();
    if (journal.position % FILE_BYTES > FILE_BYTES / 4) {
      // A file of its own for what is cut.
      while (journal.position % FILE_BYTES > FILE_BYTES / 4) await append(journal, 3);
      journal.commit();
    }
    for (let pause = 0; pause < 50; pause += 1) await Promise.resolve();
    const durable = journal.sequence - 1;
    const before = image(disk);
    for (const blocks of last) await append(journal, blocks);
    journal.commit();
    const after = image(disk);
    const [name] = [...after.keys()].filter((path) => before.get(path)?.equals(after.get(path)!) === false);
    const differing = [...before.get(name)!.keys()].filter((at) => before.get(name)![at] !== after.get(name)![at]);
    for (let trial = 0; trial < 40; trial += 1) {
      const cutAt = trial % 2 === 0 ? random.below(64) * PAGE : differing[random.below(differing.length)];
      const torn = Buffer.concat([after.get(name)!.subarray(0, cutAt), before.get(name)!.subarray(cutAt)]);
      let world = await diskOf(new Map([...before, [name, torn]]));
      let [next, sequences] = await mustRecover(world, true, durable);
      for (let life = 0; life < 3; life += 1) {
        const kept = next.sequence;
        await append(next, random.below(3));
        next.commit();
        world = world.reopen();
        [next, sequences] = await mustRecover(world, true, durable);
        assert.deepEqual(sequences, upTo(kept + 1, durable + 1));
      }
    }
  }
});

test("what a loss of power leaves behind the end is never taken for damage later, by seed", async () => {
  let cutOff = 0;
  for (let seed = 1; seed <= 60; seed += 1) {
    const own = new SeededRandom(seed);
    let disk = new MemoryDisk();
    let journal = await begun(disk);
    await journal.sync();
    for (let loss = 0; loss < 3; loss += 1) {
      await fill(journal, own.below(12));
      if (own.below(3) === 0) await journal.sync();
      await fill(journal, own.below(5));
      const written = journal.sequence;
      disk = disk.crash(own);
      let sequences: number[];
      [journal, sequences] = await mustRecover(disk, false);
      if (sequences.length < written) cutOff += 1;
      for (let life = 0; life < 4; life += 1) {
        await fill(journal, own.below(2), [own.below(3)]);
        const { sequence } = journal;
        disk = disk.reopen();
        [journal, sequences] = await mustRecover(disk, true);
        assert.deepEqual(sequences, upTo(sequence), `seed ${seed}`);
      }
    }
  }
  assert.ok(cutOff > 40, `${cutOff} were torn`);
});

test("where the disk refuses to clear what stands behind the end, nothing is appended, and what is there is served", async () => {
  const disk = new MemoryDisk();
  await fill(await begun(disk), 0, [1, 1, 1, 1]);
  const files = image(disk);
  const torn = await diskOf(new Map([[first, flipped(files.get(first)!, FILE_HEADER_BYTES + 5000)]]));
  let writes = 0;
  torn.setFault(({ operation }) => {
    if (operation !== "write") return;
    writes += 1;
    // The page at the end can still be written.
    if (writes > 1) throw new Error("the disk fails");
  });
  const [journal, sequences] = await mustRecover(torn, false);
  assert.ok(writes > 1);
  assert.deepEqual(sequences, [1]);
  assert.throws(() => journal.append(1, 5, 1), { kind: "unavailable" });
});
