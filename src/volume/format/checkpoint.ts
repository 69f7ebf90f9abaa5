/**
 * A checkpoint root (docs/format.md, "Checkpoint root"): the map of a volume as of one log object, by its pages.
 * Epoch and sequence of the envelope are the writer's epoch and the checkpoint's number in it.
 *
 *    0 u64 covers epoch   8 u64 covers sequence   16 16B journal id   32 u64 journal end   40 u64 size in bytes
 *   48 u8 ever written   49 7B 0   56 u32 lineage count   60 u32 map object count   64 u32 shard count
 *   68 u32 tail length   72 u64 time ms   80 16B 0
 *   then lineage count x 16B uid, map object count x 24B (object-references.ts), shard count x
 *   {u32 shard   u32 map object   u32 offset   u32 length} ascending by shard, then a tail that readers skip
 *
 * A shard that is not listed holds nothing. The object is exactly envelope and section.
 */
import { assert } from "../../base/assert.ts";
import { BLOCK_BYTES, type Epoch, MAX_VOLUME_BYTES, type SegmentSeq, type VolumeUid } from "../identity.ts";
import { decodeEnvelope, ENVELOPE_BYTES, type EnvelopeHeader, sealEnvelope } from "./envelope.ts";
import { checkZero, corrupt, readU64, readUid, writeU64, writeUid } from "./fields.ts";
import { MAX_PAGE_BYTES, MAX_SHARDS, SHARD_BLOCKS } from "./map-page.ts";
import { OBJECT_REFERENCE_BYTES, type ObjectReferences, readReferences, writeReferences } from "./object-references.ts";

const FIXED_BYTES = 96;
const UID_BYTES = 16;
const SHARD_BYTES = 16;
const SHARD_SIZE_BYTES = SHARD_BLOCKS * BLOCK_BYTES;

/** Columns of a fixed number of rows, ascending by shard. */
export class CheckpointShards {
  readonly count: number;
  readonly shard: Uint32Array;
  /** Index into the checkpoint's map objects. */
  readonly mapObject: Uint32Array;
  /** Of the page, from the start of the map object. */
  readonly offset: Uint32Array;
  readonly length: Uint32Array;

  constructor(count: number) {
    this.count = count;
    this.shard = new Uint32Array(count);
    this.mapObject = new Uint32Array(count);
    this.offset = new Uint32Array(count);
    this.length = new Uint32Array(count);
  }

  set(index: number, row: { shard: number; mapObject: number; offset: number; length: number }): void {
    this.shard[index] = row.shard;
    this.mapObject[index] = row.mapObject;
    this.offset[index] = row.offset;
    this.length[index] = row.length;
  }
}

export interface Checkpoint {
  /** The last log object whose content the map holds; all lower ones are held too. */
  covers: { epoch: Epoch; sequence: SegmentSeq };
  /** 16 bytes: the journal whose records are held up to and including journalEnd. */
  journalId: Buffer;
  journalEnd: number;
  sizeBytes: number;
  everWritten: boolean;
  timeMs: number;
  /** Uids of ancestors; lineage index 1 is the first. The volume itself is index 0 and not listed. */
  lineage: VolumeUid[];
  mapObjects: ObjectReferences;
  shards: CheckpointShards;
}

export interface DecodedCheckpoint extends Checkpoint {
  uid: VolumeUid;
  epoch: Epoch;
  number: number;
}

/** The whole object. */
export function encodeCheckpoint(header: Omit<EnvelopeHeader, "kind">, checkpoint: Checkpoint): Buffer {
  const { lineage, mapObjects, shards } = checkpoint;
  const referencesAt = FIXED_BYTES + lineage.length * UID_BYTES;
  const shardsAt = referencesAt + mapObjects.count * OBJECT_REFERENCE_BYTES;
  const length = shardsAt + shards.count * SHARD_BYTES;
  const bytes = Buffer.alloc(ENVELOPE_BYTES + length);
  const section = bytes.subarray(ENVELOPE_BYTES);
  const problem = findProblem(checkpoint);
  assert(problem === undefined, `checkpoint cannot be written: ${problem}`);
  writeU64(section, 0, checkpoint.covers.epoch);
  writeU64(section, 8, checkpoint.covers.sequence);
  section.set(checkpoint.journalId, 16);
  writeU64(section, 32, checkpoint.journalEnd);
  writeU64(section, 40, checkpoint.sizeBytes);
  section[48] = checkpoint.everWritten ? 1 : 0;
  section.writeUInt32LE(lineage.length, 56);
  section.writeUInt32LE(mapObjects.count, 60);
  section.writeUInt32LE(shards.count, 64);
  writeU64(section, 72, checkpoint.timeMs);
  for (const [index, uid] of lineage.entries()) writeUid(section, FIXED_BYTES + index * UID_BYTES, uid);
  writeReferences(section, referencesAt, mapObjects);
  for (let index = 0, at = shardsAt; index < shards.count; index += 1, at += SHARD_BYTES) {
    section.writeUInt32LE(shards.shard[index], at);
    section.writeUInt32LE(shards.mapObject[index], at + 4);
    section.writeUInt32LE(shards.offset[index], at + 8);
    section.writeUInt32LE(shards.length[index], at + 12);
  }
  sealEnvelope(bytes, { ...header, kind: "checkpoint" }, length);
  return bytes;
}

/** `bytes` are the whole object. Columns hold no reference to them. */
export function decodeCheckpoint(
  bytes: Buffer,
  expected: { uid?: VolumeUid; epoch?: number; sequence?: number },
): DecodedCheckpoint {
  const { section, uid, epoch, sequence } = decodeEnvelope(bytes, { ...expected, kind: "checkpoint" });
  if (bytes.length !== ENVELOPE_BYTES + section.length) throw corrupt("checkpoint has bytes behind its end");
  if (section.length < FIXED_BYTES) throw corrupt("checkpoint is too short", { length: section.length });
  checkZero(section, 49, 56);
  checkZero(section, 80, FIXED_BYTES);
  const lineageCount = section.readUInt32LE(56);
  const mapObjectCount = section.readUInt32LE(60);
  const shardCount = section.readUInt32LE(64);
  const referencesAt = FIXED_BYTES + lineageCount * UID_BYTES;
  const shardsAt = referencesAt + mapObjectCount * OBJECT_REFERENCE_BYTES;
  if (section.length !== shardsAt + shardCount * SHARD_BYTES + section.readUInt32LE(68)) {
    throw corrupt("checkpoint does not hold what it counts", { lineageCount, mapObjectCount, shardCount });
  }
  if (section[48] > 1) throw corrupt("checkpoint has an invalid flag", { everWritten: section[48] });
  const lineage = Array.from({ length: lineageCount }, (_, index) => readUid(section, FIXED_BYTES + index * UID_BYTES));
  const checkpoint: DecodedCheckpoint = {
    uid,
    epoch: epoch as Epoch,
    number: sequence,
    covers: { epoch: readU64(section, 0) as Epoch, sequence: readU64(section, 8) as SegmentSeq },
    journalId: Buffer.from(section.subarray(16, 32)),
    journalEnd: readU64(section, 32),
    sizeBytes: readU64(section, 40),
    everWritten: section[48] === 1,
    timeMs: readU64(section, 72),
    lineage,
    mapObjects: readReferences(section, referencesAt, mapObjectCount),
    shards: readShards(section, shardsAt, shardCount),
  };
  const problem = findProblem(checkpoint);
  if (problem !== undefined) throw corrupt(`checkpoint is invalid: ${problem}`, { epoch, number: sequence });
  return checkpoint;
}

function readShards(section: Buffer, at: number, count: number): CheckpointShards {
  const shards = new CheckpointShards(count);
  for (let index = 0; index < count; index += 1, at += SHARD_BYTES) {
    shards.shard[index] = section.readUInt32LE(at);
    shards.mapObject[index] = section.readUInt32LE(at + 4);
    shards.offset[index] = section.readUInt32LE(at + 8);
    shards.length[index] = section.readUInt32LE(at + 12);
  }
  return shards;
}

function findProblem(checkpoint: Checkpoint): string | undefined {
  const { covers, journalId, sizeBytes, lineage, mapObjects, shards } = checkpoint;
  if (covers.epoch === 0) return "it covers no epoch";
  if (journalId.length !== UID_BYTES) return "a journal id is 16 bytes";
  if (sizeBytes % BLOCK_BYTES !== 0 || sizeBytes > MAX_VOLUME_BYTES) return "no valid volume size";
  for (let index = 0; index < mapObjects.count; index += 1) {
    if (mapObjects.lineage[index] > lineage.length) return "a map object is of an unknown lineage";
  }
  const limit = Math.min(MAX_SHARDS, Math.ceil(sizeBytes / SHARD_SIZE_BYTES));
  for (let index = 0; index < shards.count; index += 1) {
    const shard = shards.shard[index];
    if (shard >= limit) return "a shard is outside the volume";
    if (index > 0 && shard <= shards.shard[index - 1]) return "shards are not in order";
    if (shards.mapObject[index] >= mapObjects.count) return "a shard names no map object";
    if (shards.offset[index] < ENVELOPE_BYTES || shards.length[index] === 0) return "a shard's page has no place";
    if (shards.length[index] > MAX_PAGE_BYTES) return "a shard's page is longer than any";
  }
  return undefined;
}
