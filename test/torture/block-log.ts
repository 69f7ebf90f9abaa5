/**
 * The log that Linux's dm-log-writes keeps of a device: every write, flush and discard in the order of completion, and
 * marks that the user set (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c). It can
 * be replayed to any entry, and tells whether what a device holds after a crash is what it may hold.
 *
 * Super block, little-endian: magic u64, version u64, entries u64, sector size u32. Each entry is a sector: sector u64,
 * sectors u64, flags u64, data length u64, the text of a mark; then the written sectors, none for a discard. Positions
 * count in the log's own sector size.
 */
import { closeSync, openSync, readSync, writeSync } from "node:fs";

const MAGIC = 0x6a736677736872n;
const entryHeadBytes = 32;
const flag = { flush: 1, fua: 2, discard: 4, mark: 8 } as const;

export interface LogEntry {
  /** In units of sectors. */
  sector: number;
  sectors: number;
  /** All entries before this one are durable once it has completed. */
  isFlush: boolean;
  /** What it writes is durable once it has completed. */
  isFua: boolean;
  isDiscard: boolean;
  mark: string | undefined;
  /** Where in the log its data begins. */
  dataOffset: number;
}

export interface BlockLog {
  path: string;
  sectorBytes: number;
  entries: LogEntry[];
}

export function readBlockLog(path: string): BlockLog {
  const fd = openSync(path, "r");
  try {
    const head = Buffer.alloc(entryHeadBytes);
    readSync(fd, head, 0, entryHeadBytes, 0);
    if (head.readBigUInt64LE(0) !== MAGIC) throw new Error(`${path} is no log of writes`);
    const count = Number(head.readBigUInt64LE(16));
    const sectorBytes = head.readUInt32LE(24);
    const entries: LogEntry[] = [];
    const bytes = Buffer.alloc(sectorBytes);
    for (let offset = sectorBytes; entries.length < count;) {
      readSync(fd, bytes, 0, sectorBytes, offset);
      const entry = decodeEntry(bytes, offset + sectorBytes);
      entries.push(entry);
      offset += sectorBytes * (1 + (entry.isDiscard ? 0 : entry.sectors));
    }
    return { path, sectorBytes, entries };
  } finally {
    closeSync(fd);
  }
}

function decodeEntry(bytes: Buffer, dataOffset: number): LogEntry {
  const [sector, sectors, flags, length] = [0, 8, 16, 24].map((at) => Number(bytes.readBigUInt64LE(at)));
  const isMark = (flags & flag.mark) !== 0;
  return {
    sector,
    sectors: isMark ? 0 : sectors,
    isFlush: (flags & flag.flush) !== 0,
    isFua: (flags & flag.fua) !== 0,
    isDiscard: (flags & flag.discard) !== 0,
    mark: isMark ? bytes.toString("latin1", entryHeadBytes, entryHeadBytes + length).replaceAll("\0", "") : undefined,
    dataOffset,
  };
}

/** Writes entries [from, to) to the device or file at `target`. */
export function replay(log: BlockLog, target: string, { from, to }: { from: number; to: number }): void {
  const source = openSync(log.path, "r");
  const out = openSync(target, "r+");
  try {
    for (const entry of log.entries.slice(from, to)) {
      const bytes = Buffer.alloc(entry.sectors * log.sectorBytes);
      if (!entry.isDiscard) readSync(source, bytes, 0, bytes.length, entry.dataOffset);
      writeSync(out, bytes, 0, bytes.length, entry.sector * log.sectorBytes);
    }
  } finally {
    closeSync(source);
    closeSync(out);
  }
}

export interface Verdict {
  /** Sectors that hold something else than any version they may hold: lines. */
  faults: string[];
  /** Sectors of which a version is there that was written after the last flush. */
  newer: number;
  /** Sectors that lack a version older than one that is there, both written after the last flush. */
  reordered: number;
}

/**
 * Holds a device that read as zeroes before the log began against the log: every sector must be at least as the last
 * flush (or a later FUA write of its own) before entry `crash` left it, and hold nothing that was never written there.
 */
export function judge(log: BlockLog, content: Buffer, crash: number): Verdict {
  const fd = openSync(log.path, "r");
  try {
    const versions = versionsBySector(log);
    const lastFlush = log.entries.findLastIndex((entry, index) => index < crash && entry.isFlush);
    const verdict: Verdict = { faults: [], newer: 0, reordered: 0 };
    let newest = -1;
    const found = new Map<number, number[]>();
    for (let sector = 0; sector * log.sectorBytes < content.length; sector += 1) {
      const own = versions.get(sector) ?? [];
      const bytes = content.subarray(sector * log.sectorBytes, (sector + 1) * log.sectorBytes);
      const oldest = own.findLast((index) => index < lastFlush || (index < crash && log.entries[index].isFua)) ?? -1;
      const matches = [-1, ...own].filter((index) => index >= oldest && bytes.equals(version(log, fd, sector, index)));
      if (matches.length === 0) {
        verdict.faults.push(`sector ${sector} is older than entry ${oldest} or was never written like this`);
        continue;
      }
      found.set(sector, matches);
      newest = Math.max(newest, matches[0]);
      if (matches[0] > lastFlush) verdict.newer += 1;
    }
    for (const [sector, matches] of found) {
      const due = (versions.get(sector) ?? []).findLast((index) => index <= newest) ?? -1;
      if (!matches.includes(due) && matches.at(-1)! < due) verdict.reordered += 1;
    }
    return verdict;
  } finally {
    closeSync(fd);
  }
}

function versionsBySector(log: BlockLog): Map<number, number[]> {
  const versions = new Map<number, number[]>();
  for (const [index, { sector, sectors }] of log.entries.entries()) {
    for (let each = sector; each < sector + sectors; each += 1) {
      const own = versions.get(each) ?? [];
      own.push(index);
      versions.set(each, own);
    }
  }
  return versions;
}

/** What entry `index` made of the sector; -1 is the beginning. */
function version(log: BlockLog, fd: number, sector: number, index: number): Buffer {
  const bytes = Buffer.alloc(log.sectorBytes);
  if (index === -1) return bytes;
  const entry = log.entries[index];
  const offset = entry.dataOffset + (sector - entry.sector) * log.sectorBytes;
  if (!entry.isDiscard) readSync(fd, bytes, 0, bytes.length, offset);
  return bytes;
}
