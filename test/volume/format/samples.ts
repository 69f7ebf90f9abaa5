/** One value of every structure, and arbitrary ones, shared by the tests of the format. */
import fc from "fast-check";
import { type Checkpoint, CheckpointShards } from "../../../src/volume/format/checkpoint.ts";
import type { VolumeMeta } from "../../../src/volume/format/control-records.ts";
import { encodeEnvelope, sealEnvelope, peekEnvelope, ENVELOPE_BYTES } from "../../../src/volume/format/envelope.ts";
import { ENCODED_FLAG, MapPageRuns, RAW_FRAME_UNITS, SHARD_BLOCKS } from "../../../src/volume/format/map-page.ts";
import { ObjectReferences } from "../../../src/volume/format/object-references.ts";
import {
  EXTENT_ENCODED,
  EXTENT_RAW,
  EXTENT_ZERO,
  MAX_VOLUME_BLOCKS,
  SegmentExtents,
  segmentHeadBytes,
  type SegmentHead,
} from "../../../src/volume/format/segment.ts";
import type { Epoch, SegmentSeq, VolumeId, VolumeUid } from "../../../src/volume/identity.ts";

export const UID = "00112233445566778899aabbccddeeff" as VolumeUid;
export const NONCE = Buffer.from("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", "hex");
export const JOURNAL_ID = Buffer.from("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", "hex");
export const TIME_MS = 1_760_000_000_123;

export const dataHead: SegmentHead = {
  type: "data",
  timeMs: TIME_MS,
  journalId: JOURNAL_ID,
  journalEnd: 0x1_0000_0007,
  everWritten: false,
  extents: sampleExtents(),
  dataLength: 3 * 4112 + 48,
};

export const startHead: SegmentHead = {
  type: "start",
  timeMs: TIME_MS,
  journalId: JOURNAL_ID,
  journalEnd: 99,
  parent: { epoch: 4 as Epoch, sequence: 0x2_0000_0001 as SegmentSeq },
  baseCheckpoint: { epoch: 3 as Epoch, number: 17 },
  everWritten: true,
  extents: new SegmentExtents(),
  dataLength: 0,
};

export const fenceHead: SegmentHead = {
  type: "fence",
  timeMs: TIME_MS,
  journalId: Buffer.alloc(16),
  journalEnd: 0,
  everWritten: false,
  extents: new SegmentExtents(),
  dataLength: 0,
};

function sampleExtents(): SegmentExtents {
  const dataOffset = segmentHeadBytes(3);
  const extents = new SegmentExtents();
  extents.push(MAX_VOLUME_BLOCKS - 3, 3, EXTENT_RAW, 0, dataOffset, 3 * 4112);
  extents.push(5, 1_000_000, EXTENT_ZERO, 0, 0, 0);
  extents.push(0, 16, EXTENT_ENCODED, 1, dataOffset + 3 * 4112, 48);
  return extents;
}

export function samplePage(): { sources: ObjectReferences; runs: MapPageRuns } {
  const sources = new ObjectReferences();
  sources.push({ lineage: 0, epoch: 7, sequence: 0x1_0000_0002 });
  sources.push({ lineage: 2, epoch: 1, sequence: 9 });
  const runs = new MapPageRuns();
  runs.push(0, 2, ((1 << 16) | RAW_FRAME_UNITS) >>> 0, 12);
  runs.push(100, 15, ((2 << 16) | ENCODED_FLAG | 1025) >>> 0, (1 << 22) | 4000);
  runs.push(32_767, 1, ((2 << 16) | RAW_FRAME_UNITS) >>> 0, 2 ** 22 - RAW_FRAME_UNITS);
  return { sources, runs };
}

export function sampleCheckpoint(): Checkpoint {
  const mapObjects = new ObjectReferences();
  mapObjects.push({ lineage: 0, epoch: 7, sequence: 1 });
  mapObjects.push({ lineage: 1, epoch: 2, sequence: 30 });
  const shards = new CheckpointShards(2);
  shards.set(0, { shard: 0, mapObject: 1, offset: 88, length: 500 });
  shards.set(1, { shard: 131_071, mapObject: 0, offset: 72, length: 262_200 });
  return {
    covers: { epoch: 7 as Epoch, sequence: 0x1_0000_0002 as SegmentSeq },
    journalId: JOURNAL_ID,
    journalEnd: 1234,
    sizeBytes: 16 * 1024 ** 4,
    everWritten: true,
    timeMs: TIME_MS,
    lineage: ["ffeeddccbbaa99887766554433221100" as VolumeUid],
    mapObjects,
    shards,
  };
}

export const sampleMeta: VolumeMeta = {
  id: "vol-1" as VolumeId,
  uid: UID,
  number: 2,
  name: "pvc-7: données",
  sizeBytes: 1024 ** 3,
  blockSizeBytes: 4096,
  durability: "s3",
  codec: "none",
  encryption: null,
  lineage: [],
  createdMs: TIME_MS,
  fsType: "ext4",
  parameters: { bucket: "b" },
  deleted: false,
};

export const number53 = fc.oneof(
  fc.nat(300),
  fc.bigInt({ min: 0n, max: 2n ** 53n - 1n }).map(Number),
  fc.constantFrom(2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1),
);
export const uid = fc
  .uint8Array({ minLength: 16, maxLength: 16 })
  .map((bytes) => Buffer.from(bytes).toString("hex") as VolumeUid);
export const bytes16 = fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => Buffer.from(bytes));
export const header = fc.record({ uid, epoch: number53, sequence: number53, nonce: bytes16 });

/** Rows as pushed, to compare columns whose capacities differ. */
export function extentRows(extents: SegmentExtents): number[][] {
  return Array.from({ length: extents.count }, (_, index) => [
    extents.lba[index],
    extents.blockCount[index],
    extents.kind[index],
    extents.codec[index],
    extents.offset[index],
    extents.storedLength[index],
  ]);
}

export function referenceRows(references: ObjectReferences): number[][] {
  return Array.from({ length: references.count }, (_, index) => [
    references.lineage[index],
    references.epoch[index],
    references.sequence[index],
  ]);
}

/** The entries of all blocks that `runs` map, as text, holes left out. */
export function pageEntries(runs: MapPageRuns): Map<number, string> {
  const entries = new Map<number, string>();
  for (let index = 0; index < runs.count; index += 1) {
    const step = (runs.word0[index] & ENCODED_FLAG) === 0 ? RAW_FRAME_UNITS : 2 ** 22;
    for (let block = 0; block < runs.blockCount[index]; block += 1) {
      entries.set(runs.start[index] + block, `${runs.word0[index]}/${runs.word1[index] + block * step}`);
    }
  }
  return entries;
}

/** A page of up to `maxRuns` runs, built from random numbers. */
export function randomPage(
  below: (limit: number) => number,
  maxRuns: number,
): { sources: ObjectReferences; runs: MapPageRuns } {
  const sources = new ObjectReferences();
  const sourceCount = 1 + below(9);
  for (let index = 0; index < sourceCount; index += 1) {
    sources.push({ lineage: below(3), epoch: 1 + below(2 ** 40), sequence: below(2 ** 40) });
  }
  const runs = new MapPageRuns();
  let block = 0;
  while (runs.count < maxRuns && block < SHARD_BLOCKS) {
    if (below(3) === 0) block += below(4);
    if (block >= SHARD_BLOCKS) break;
    const source = (1 + below(sourceCount)) << 16;
    const longest = Math.min(SHARD_BLOCKS - block, 4);
    const blockCount = 1 + below(longest);
    if (below(2) === 0) {
      runs.push(block, blockCount, (source | RAW_FRAME_UNITS) >>> 0, below(2 ** 22 - 4 * RAW_FRAME_UNITS));
    } else {
      const first = below(16 - blockCount + 1) * 2 ** 22;
      runs.push(block, blockCount, (source | ENCODED_FLAG | (2 + below(4096))) >>> 0, first + below(2 ** 22 - 4097));
    }
    block += blockCount;
  }
  return { sources, runs };
}

/** The object again with another section, checksum and all: damage that only validation can find. */
export function withSection(object: Buffer, change: (section: Buffer) => Buffer | void): Buffer {
  const { sectionLength, ...identity } = peekEnvelope(object);
  const section = Buffer.from(object.subarray(ENVELOPE_BYTES, ENVELOPE_BYTES + sectionLength));
  const changed = change(section) ?? section;
  const rest = object.subarray(ENVELOPE_BYTES + sectionLength);
  const bytes = Buffer.concat([encodeEnvelope(identity, changed), rest]);
  sealEnvelope(bytes, identity, changed.length);
  return bytes;
}
