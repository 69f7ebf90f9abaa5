/**
 * The index of the block cache on disk, so that a restarted server finds its cache warm. All little-endian.
 *
 *   header   0 u32 magic "S3BI" | 4 u16 version 2 | 6 u16 0 | 8 u32 slots | 12 u32 rows | 16 u32 uids | 20 u32 0 |
 *            24 u32 0 | 28 u32 crc32 of bytes 0 … 28 and of the uids, 16 bytes each, which follow
 *   groups   of 1024 rows (the last one shorter): rows, then u32 crc32 of them, seeded with the header's crc32 + number
 *   row      0 u32 slot (0xffffffff: empty row) | 4 u16 owner (uid number × 2 + 1 for a map) | 6 u16 part |
 *            8 u32 epoch | 12 u64 sequence | 20 u16 length − 1 | 22 u8 1: main queue | 23 u8 uses
 *
 * The file is a hint: it is written while the cache changes, may be old, and a damaged group is left out. It can never
 * make a volume serve wrong bytes, because who reads a part holds checksums that are bound to the object's identity.
 * It replaces the former one by rename, after a sync.
 */
import { crc32 } from "../base/checksum.ts";
import type { Clock } from "../base/clock.ts";
import type { Disk, DiskFile } from "../base/disk.ts";
import { isKind, OperationError } from "../base/errors.ts";
import { type CacheIndex, type CacheRow, NO_SLOT } from "./cache-index.ts";
import type { VolumeUid } from "./identity.ts";

const FILE_NAME = "cache-index";
const NEW_FILE_NAME = "cache-index.new";
const MAGIC = Buffer.from("S3BI", "latin1").readUInt32LE(0);
const VERSION = 2;
const HEADER_BYTES = 32;
const UID_BYTES = 16;
const NO_UID = "0".repeat(UID_BYTES * 2) as VolumeUid;
/** Bytes of a row, and so of the index file, per cached part. */
export const ROW_BYTES = 24;
const GROUP_ROWS = 1024;

/** Writes the index. Lets other work run between groups; what changes meanwhile may be in it or not. */
export async function saveCacheIndex(disk: Disk, index: CacheIndex, clock: Clock): Promise<void> {
  const order = index.order();
  const uids = index.uids();
  await disk.remove(NEW_FILE_NAME);
  const file = await disk.open(NEW_FILE_NAME, { create: true });
  try {
    const header = encodeHeader(index.slotCount, order.length, uids);
    const headerCrc = header.readUInt32LE(28);
    await file.write(header, 0);
    let position = header.length;
    const group = Buffer.alloc(GROUP_ROWS * ROW_BYTES + 4);
    for (let first = 0; first < order.length; first += GROUP_ROWS) {
      const count = Math.min(GROUP_ROWS, order.length - first);
      for (let row = 0; row < count; row += 1) encodeRow(group, row * ROW_BYTES, index, order[first + row]);
      const length = count * ROW_BYTES;
      group.writeUInt32LE(crc32(group.subarray(0, length), groupSeed(headerCrc, first)), length);
      await file.write(group.subarray(0, length + 4), position);
      position += length + 4;
      await clock.yield();
    }
    await file.sync();
  } finally {
    await file.close();
  }
  await disk.rename(NEW_FILE_NAME, FILE_NAME);
  await disk.sync();
}

/**
 * Fills an empty index from the file of an earlier process; rows whose slot lies beyond `cacheBytes` are left out.
 * Answers how many groups were damaged. No file: an empty index. Throws "corrupt" where the header makes no sense.
 */
export async function loadCacheIndex(
  disk: Disk,
  index: CacheIndex,
  options: { cacheSlots: number; clock: Clock },
): Promise<{ damagedGroups: number }> {
  const file = await openExisting(disk);
  if (file === undefined) return { damagedGroups: 0 };
  let damagedGroups = 0;
  try {
    const { uids, rows, headerCrc } = await readHeader(file);
    let position = HEADER_BYTES + uids.length * UID_BYTES;
    const group = Buffer.alloc(GROUP_ROWS * ROW_BYTES + 4);
    for (let first = 0; first < rows; first += GROUP_ROWS) {
      const length = Math.min(GROUP_ROWS, rows - first) * ROW_BYTES;
      await file.read(group.subarray(0, length + 4), position);
      position += length + 4;
      const intact = crc32(group.subarray(0, length), groupSeed(headerCrc, first)) === group.readUInt32LE(length);
      if (!intact) damagedGroups += 1;
      for (let at = 0; intact && at < length; at += ROW_BYTES) adoptRow(index, group, at, uids, options.cacheSlots);
      await options.clock.yield();
    }
  } finally {
    index.endAdoption();
    await file.close();
  }
  return { damagedGroups };
}

async function openExisting(disk: Disk): Promise<DiskFile | undefined> {
  try {
    return await disk.open(FILE_NAME);
  } catch (error) {
    if (isKind(error, "not-found")) return undefined;
    throw error;
  }
}

function encodeHeader(slots: number, rows: number, uids: (VolumeUid | undefined)[]): Buffer {
  const header = Buffer.alloc(HEADER_BYTES + uids.length * UID_BYTES);
  header.writeUInt32LE(MAGIC, 0);
  header.writeUInt16LE(VERSION, 4);
  header.writeUInt32LE(slots, 8);
  header.writeUInt32LE(rows, 12);
  header.writeUInt32LE(uids.length, 16);
  for (const [ordinal, uid] of uids.entries()) {
    header.write(uid ?? NO_UID, HEADER_BYTES + ordinal * UID_BYTES, UID_BYTES, "hex");
  }
  header.writeUInt32LE(headerChecksum(header), 28);
  return header;
}

async function readHeader(file: DiskFile): Promise<{ uids: VolumeUid[]; rows: number; headerCrc: number }> {
  const damaged = new OperationError("corrupt", "the index of the block cache is damaged, the cache starts empty");
  const head = Buffer.alloc(HEADER_BYTES);
  await file.read(head, 0);
  const rows = head.readUInt32LE(12);
  const uidCount = head.readUInt32LE(16);
  const tableBytes = uidCount * UID_BYTES;
  const rowBytes = rows * ROW_BYTES + Math.ceil(rows / GROUP_ROWS) * 4;
  if (head.readUInt32LE(0) !== MAGIC || head.readUInt16LE(4) !== VERSION) throw damaged;
  if (HEADER_BYTES + tableBytes + rowBytes !== file.sizeBytes()) throw damaged;
  const whole = Buffer.alloc(HEADER_BYTES + tableBytes);
  await file.read(whole, 0);
  const headerCrc = whole.readUInt32LE(28);
  if (headerChecksum(whole) !== headerCrc) throw damaged;
  const uids: VolumeUid[] = [];
  for (let at = HEADER_BYTES; at < whole.length; at += UID_BYTES) {
    uids.push(whole.toString("hex", at, at + UID_BYTES) as VolumeUid);
  }
  return { uids, rows, headerCrc };
}

function headerChecksum(header: Buffer): number {
  return crc32(header.subarray(HEADER_BYTES), crc32(header.subarray(0, 28)));
}

function groupSeed(headerCrc: number, first: number): number {
  return (headerCrc + first) >>> 0;
}

function encodeRow(target: Buffer, at: number, index: CacheIndex, slot: number): void {
  const row = index.row(slot);
  if (row === undefined) {
    target.fill(0, at, at + ROW_BYTES);
    target.writeUInt32LE(NO_SLOT, at);
    return;
  }
  target.writeUInt32LE(row.slot, at);
  target.writeUInt16LE(row.owner, at + 4);
  target.writeUInt16LE(row.part, at + 6);
  target.writeUInt32LE(row.epoch, at + 8);
  target.writeUInt32LE(row.sequence % 0x1_0000_0000, at + 12);
  target.writeUInt32LE(Math.floor(row.sequence / 0x1_0000_0000), at + 16);
  target.writeUInt16LE(row.length - 1, at + 20);
  target[at + 22] = row.main ? 1 : 0;
  target[at + 23] = row.uses;
}

function adoptRow(index: CacheIndex, group: Buffer, at: number, uids: VolumeUid[], cacheSlots: number): void {
  const owner = group.readUInt16LE(at + 4);
  const uid = uids[owner >>> 1];
  const row: CacheRow = {
    slot: group.readUInt32LE(at),
    owner,
    part: group.readUInt16LE(at + 6),
    epoch: group.readUInt32LE(at + 8),
    sequence: group.readUInt32LE(at + 16) * 0x1_0000_0000 + group.readUInt32LE(at + 12),
    length: group.readUInt16LE(at + 20) + 1,
    main: group[at + 22] === 1,
    uses: group[at + 23] & 3,
  };
  if (row.slot >= cacheSlots || uid === undefined || uid === NO_UID) return;
  index.adopt(row, uid);
}
