/**
 * A map object (docs/format.md, "Map object"): an envelope whose section lists the pages that follow.
 *
 *    0 u32 page count   4 u32 0   then per page {u32 shard   u32 offset   u32 length   u32 CRC-32 of the page}
 *
 * Pages stand one after another right behind the section, in the order of the list; offsets are from the start of the
 * object. Checkpoint roots name pages by offset and length, so the list serves checking and salvage.
 */
import { assert } from "../../base/assert.ts";
import { crc32 } from "../../base/checksum.ts";
import type { VolumeUid } from "../identity.ts";
import { decodeEnvelope, encodeEnvelope, ENVELOPE_BYTES, type EnvelopeHeader } from "./envelope.ts";
import { checkZero, corrupt } from "./fields.ts";
import { MAX_SHARDS } from "./map-page.ts";

const HEADER_BYTES = 8;
const ENTRY_BYTES = 16;

export interface MapObjectEntry {
  shard: number;
  /** From the start of the object. */
  offset: number;
  length: number;
  crc: number;
}

/** The head to put before `pages`, and where each of them will stand. */
export function encodeMapObjectHead(
  header: Omit<EnvelopeHeader, "kind">,
  pages: readonly { shard: number; page: Buffer }[],
): { head: Buffer; entries: MapObjectEntry[] } {
  const section = Buffer.alloc(HEADER_BYTES + pages.length * ENTRY_BYTES);
  section.writeUInt32LE(pages.length, 0);
  const entries: MapObjectEntry[] = [];
  let offset = ENVELOPE_BYTES + section.length;
  for (const [index, { shard, page }] of pages.entries()) {
    assert(shard < MAX_SHARDS && page.length > 0, "a map object holds pages of shards");
    const entry = { shard, offset, length: page.length, crc: crc32(page) };
    const at = HEADER_BYTES + index * ENTRY_BYTES;
    section.writeUInt32LE(entry.shard, at);
    section.writeUInt32LE(entry.offset, at + 4);
    section.writeUInt32LE(entry.length, at + 8);
    section.writeUInt32LE(entry.crc, at + 12);
    entries.push(entry);
    offset += page.length;
  }
  return { head: encodeEnvelope({ ...header, kind: "map" }, section), entries };
}

/** The list of pages. `bytes` hold at least envelope and section; the pages themselves are not looked at. */
export function decodeMapObjectHead(
  bytes: Buffer,
  expected: { uid?: VolumeUid; epoch?: number; sequence?: number },
): MapObjectEntry[] {
  const { section } = decodeEnvelope(bytes, { ...expected, kind: "map" });
  const pageCount = section.length < HEADER_BYTES ? 0 : section.readUInt32LE(0);
  if (section.length !== HEADER_BYTES + pageCount * ENTRY_BYTES) {
    throw corrupt("map object does not hold the pages it counts", { pageCount, length: section.length });
  }
  checkZero(section, 4, HEADER_BYTES);
  const entries: MapObjectEntry[] = [];
  let next = ENVELOPE_BYTES + section.length;
  for (let at = HEADER_BYTES; at < section.length; at += ENTRY_BYTES) {
    const entry = {
      shard: section.readUInt32LE(at),
      offset: section.readUInt32LE(at + 4),
      length: section.readUInt32LE(at + 8),
      crc: section.readUInt32LE(at + 12),
    };
    if (entry.shard >= MAX_SHARDS || entry.offset !== next || entry.length === 0) {
      throw corrupt("map object lists an invalid page", { shard: entry.shard, offset: entry.offset });
    }
    next += entry.length;
    entries.push(entry);
  }
  return entries;
}
