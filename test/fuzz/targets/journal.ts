/**
 * The local journal: its two headers, and the recovery of a whole journal of two files. Recovery is held to two
 * oracles. What was damaged without mending a checksum must yield exactly the records before the damage, byte for byte.
 * Behind forged checksums anything sound may be found, but the journal must go on from there: what was recovered, and
 * one record more, comes back at the next start.
 */
import assert from "node:assert/strict";
import { crc32 } from "../../../src/base/checksum.ts";
import { isKind } from "../../../src/base/errors.ts";
import { nullLog } from "../../../src/base/log.ts";
import { MemoryDisk } from "../../../src/base/memory-disk.ts";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import {
  decodeFileHeader,
  decodeRecordHead,
  encodeFileHeader,
  encodeRecordHead,
  EXTENT_DATA,
  FILE_HEADER_BYTES,
  recordHeadBytes,
} from "../../../src/volume/format/journal-record.ts";
import { Journal } from "../../../src/volume/journal.ts";
import { journalFileName } from "../../../src/volume/journal-scan.ts";
import { readJournal } from "../../volume/read-journal.ts";
import { mutated } from "../mutation.ts";
import type { FuzzTarget } from "../target.ts";
import { verdict } from "../verdict.ts";

const BLOCK = 4096;
const FILE_BYTES = 32 * 1024;
const UID = "00112233445566778899aabbccddeeff";
const CHAIN = 0x1234_5678;
/** Recovery reads each file through a window of 4 MiB, whatever its size. */
const MEMORY_BYTES = 64 * 1024 * 1024;

function recordHeader(): FuzzTarget {
  const one = Buffer.alloc(recordHeadBytes(1));
  encodeRecordHead(one, 0, { sequence: 7, epoch: 3, lba: 2 ** 33, blockCount: 2, kind: EXTENT_DATA, chain: CHAIN });
  const three = Buffer.concat([one, one.subarray(32), one.subarray(32)]);
  three.writeUInt16LE(3, 28);
  three.writeUInt32LE(1, 32 + 16 + 12);
  three.writeUInt32LE(recordHeadBytes(3) + 4 * 4112, 24);
  return {
    name: "journal-record",
    seeds: [one, mendRecord(three, 0, CHAIN)],
    mend: (bytes) => mendRecord(bytes, 0, CHAIN),
    run(input) {
      const record = decodeRecordHead(input, CHAIN);
      if (record === undefined) return "none";
      assert.equal(BigInt(record.sequence), input.readBigUInt64LE(8));
      assert.equal(BigInt(record.epoch), input.readBigUInt64LE(16));
      assert.equal(record.lengthBytes, input.readUInt32LE(24));
      for (const [index, { lba, blockCount, kind }] of record.extents.entries()) {
        const at = 32 + 16 * index;
        assert.equal(BigInt(lba), input.readBigUInt64LE(at));
        assert.deepEqual([blockCount, kind], [input.readUInt32LE(at + 8), input.readUInt32LE(at + 12)]);
      }
      return "value";
    },
  };
}

function mendRecord(bytes: Buffer, at: number, chain: number): Buffer {
  if (bytes.length < at + 32) return bytes;
  const head = recordHeadBytes(bytes.readUInt16LE(at + 28));
  if (bytes.length >= at + head) bytes.writeUInt32LE(crc32(bytes.subarray(at + 4, at + head), chain), at);
  return bytes;
}

function fileHeader(): FuzzTarget {
  const journalId = new SeededRandom(1).bytes(16);
  const header = {
    uid: UID,
    journalId,
    fileNumber: 9,
    firstSequence: 77,
    chain: 5,
    begins: true,
    fileBytes: FILE_BYTES,
  };
  return {
    name: "journal-file-header",
    seeds: [encodeFileHeader(header), encodeFileHeader({ ...header, begins: false })],
    mend: mendFileHeader,
    run: (input) =>
      verdict(
        ["corrupt"],
        () => decodeFileHeader(input),
        (value) => {
          if (value === undefined) return;
          assert.ok(encodeFileHeader(value).subarray(0, 72).equals(input.subarray(0, 72)));
          assert.ok(value.fileBytes % FILE_HEADER_BYTES === 0 && value.fileBytes > FILE_HEADER_BYTES);
        },
      ),
  };
}

function mendFileHeader(bytes: Buffer, at = 0): Buffer {
  if (bytes.length >= at + 72) bytes.writeUInt32LE(crc32(bytes.subarray(at, at + 68)), at + 68);
  return bytes;
}

/** One recovered record with the bytes of its blocks. */
interface Recovered {
  sequence: number;
  lba: number;
  blocks: number;
  kind: number;
  data: Buffer;
}

/** A record in a line, its bytes as a checksum: what a failure shows. */
export function summary({ sequence, lba, blocks, kind, data }: Recovered): string {
  return `${sequence}: ${blocks} blocks at ${lba} of kind ${kind}, ${crc32(data)}`;
}

async function openJournal(disk: MemoryDisk): Promise<Journal> {
  const random = new SeededRandom(2);
  return await Journal.open({
    disk,
    uid: UID,
    random,
    log: nullLog,
    limitBytes: 8 * FILE_BYTES,
    fileBytes: FILE_BYTES,
  });
}

/** Opens and recovers what is on the disk; the journal is left open. */
export async function recoverJournal(
  disk: MemoryDisk,
  clientWaits = false,
): Promise<{ journal: Journal; records: Recovered[] }> {
  const journal = await openJournal(disk);
  const records: Recovered[] = [];
  const positions: { position: number; record: Recovered }[] = [];
  if (!journal.hasHistory) return { journal, records };
  await journal.recover({ durableSequence: 0, clientWaits }, (record, framePosition) => {
    let position = framePosition;
    for (const { lba, blockCount: blocks, kind } of record.extents) {
      const data = Buffer.alloc(kind === EXTENT_DATA ? blocks * BLOCK : 0);
      const recovered = { sequence: record.sequence, lba, blocks, kind, data };
      records.push(recovered);
      if (kind !== EXTENT_DATA) continue;
      positions.push({ position, record: recovered });
      position += blocks * (BLOCK + 16);
    }
  });
  for (const { position, record } of positions)
    readJournal(journal, position, record.lba, record.blocks).copy(record.data);
  return { journal, records };
}

/** The bytes of a sound journal of `fileCount` files, and where each record ends in them. */
export async function soundJournal(
  fileCount: number,
  fileBytes = FILE_BYTES,
): Promise<{ image: Buffer; records: Recovered[]; starts: number[]; end: number }> {
  const disk = new MemoryDisk();
  const random = new SeededRandom(3);
  const options = { disk, uid: UID, random, log: nullLog, limitBytes: 8 * fileBytes, fileBytes };
  const journal = await Journal.open(options);
  await journal.begin(1);
  const records: Recovered[] = [];
  const starts: number[] = [];
  for (;;) {
    const blocks = 1 + random.below(3);
    const isZeroes = random.below(5) === 0;
    const data = isZeroes ? Buffer.alloc(0) : random.bytes(blocks * BLOCK);
    const length = recordHeadBytes(1) + (isZeroes ? 0 : blocks * (BLOCK + 16));
    const offset = journal.position % fileBytes;
    const isNextFile = offset + length > fileBytes;
    if (isNextFile && Math.floor(journal.position / fileBytes) === fileCount) break;
    while (!journal.hasRoom(isZeroes ? 0 : blocks)) await journal.waitForRoom();
    const position = journal.append(4, records.length * 5, blocks, isZeroes ? undefined : data);
    starts.push((isZeroes ? -position : position - recordHeadBytes(1)) - fileBytes);
    records.push({ sequence: records.length + 1, lba: records.length * 5, blocks, kind: isZeroes ? 1 : 0, data });
  }
  await journal.close();
  const image = Buffer.alloc(fileCount * fileBytes);
  for (let number = 1; number <= fileCount; number += 1) {
    const file = await disk.open(journalFileName(number));
    file.readSync(image.subarray((number - 1) * fileBytes, number * fileBytes), 0);
  }
  return { image, records, starts, end: journal.position - fileBytes };
}

/** A disk whose journal files hold `image`; the last one may be short or missing. */
export async function diskOf(image: Buffer, fileBytes = FILE_BYTES): Promise<MemoryDisk> {
  const disk = new MemoryDisk();
  for (let at = 0, number = 1; at < image.length; at += fileBytes, number += 1) {
    const file = await disk.open(journalFileName(number), { create: true });
    file.writeSync(image.subarray(at, at + fileBytes), 0);
    await file.close();
  }
  return disk;
}

/** Blind mutation seldom meets a header among the frames: half of the time it is aimed at one. */
function aimed(starts: readonly number[]) {
  return (input: Buffer, random: SeededRandom, others: readonly Buffer[]): Buffer => {
    if (random.below(2) === 0) return mutated(input, random, others);
    const headers = [...starts, 0, FILE_BYTES];
    const at = headers[random.below(headers.length)];
    const length = at % FILE_BYTES === 0 ? 72 : 64;
    const head = mutated(input.subarray(at, at + length), random, []);
    const result = Buffer.from(input);
    head.copy(result, at, 0, length);
    return result;
  };
}

async function damagedJournal(): Promise<FuzzTarget> {
  const { image, records, starts } = await soundJournal(2);
  return {
    name: "journal-damaged",
    seeds: [image],
    memoryBytes: MEMORY_BYTES,
    mutate: aimed(starts),
    async run(input) {
      const { journal, records: found } = await recoverJournal(await diskOf(input));
      assert.deepEqual(found.map(summary), records.slice(0, found.length).map(summary));
      await journal.close();
      const outcome = found.length === records.length ? "all" : found.length === 0 ? "none" : "prefix";
      return (await isRefused(input, found)) ? `${outcome}, refused to a client` : outcome;
    },
  };
}

/** True where a client that waits is refused what is on the disk, which then stays as it is; else it gets `records`. */
async function isRefused(input: Buffer, records: readonly Recovered[]): Promise<boolean> {
  const disk = await diskOf(input);
  try {
    const { journal, records: found } = await recoverJournal(disk, true);
    await journal.close();
    assert.deepEqual(found.map(summary), records.map(summary));
    return false;
  } catch (error) {
    if (!isKind(error, "corrupt")) throw error;
    assert.ok(Buffer.concat(disk.paths().map((path) => disk.contentOf(path))).equals(input));
    return true;
  }
}

async function forgedJournal(): Promise<FuzzTarget> {
  const { image, starts } = await soundJournal(2);
  const mend = (bytes: Buffer): Buffer => {
    let chain = 0;
    for (let at = 0; at < bytes.length; at += FILE_BYTES) mendFileHeader(bytes, at);
    for (const at of starts) {
      mendRecord(bytes, at, chain);
      if (bytes.length >= at + 4) chain = bytes.readUInt32LE(at);
    }
    return bytes;
  };
  return {
    name: "journal-forged",
    seeds: [image],
    memoryBytes: MEMORY_BYTES,
    mutate: (input, random, others) => mend(Buffer.from(aimed(starts)(input, random, others))),
    mend,
    async run(input) {
      let disk = await diskOf(input);
      let first;
      try {
        first = await recoverJournal(disk);
      } catch (error) {
        if (isKind(error, "corrupt")) return "corrupt";
        throw error;
      }
      const { journal, records } = first;
      if (!journal.hasHistory) await journal.begin(1);
      const data = Buffer.alloc(BLOCK, 0x5a);
      while (!journal.hasRoom(1)) await journal.waitForRoom();
      journal.append(Number.MAX_SAFE_INTEGER, 9, 1, data);
      const added = { sequence: journal.sequence, lba: 9, blocks: 1, kind: EXTENT_DATA, data };
      await journal.close();
      disk = disk.reopen();
      const second = await recoverJournal(disk);
      await second.journal.close();
      assert.deepEqual(second.records.map(summary), [...records, added].map(summary));
      return records.length === 0 ? "none" : "value";
    },
  };
}

export const journalTargets = {
  "journal-record": recordHeader,
  "journal-file-header": fileHeader,
  "journal-damaged": damagedJournal,
  "journal-forged": forgedJournal,
} as const;
