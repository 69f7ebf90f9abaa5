/**
 * Objects of the store that are rotten (bits, ranges, cut short), swapped (the body of another key), or rolled back
 * (the body of an earlier key of the same kind). Two things are shown for each one:
 * - reading the object as its key says finds the damage;
 * - opening the volume over it and reading every block gives the right bytes or an error, never other bytes.
 */
import assert from "node:assert/strict";
import { OperationError } from "../../../src/base/errors.ts";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { decodeCheckpoint } from "../../../src/volume/format/checkpoint.ts";
import {
  decodeConfirmation,
  decodeEpochClaim,
  decodeMeta,
  decodeNameRecord,
  decodePublication,
} from "../../../src/volume/format/control-records.ts";
import { isIntactRawFrame, RAW_FRAME_BYTES, segmentFrameSeed } from "../../../src/volume/format/frame.ts";
import { decodeMapObjectHead } from "../../../src/volume/format/map-object.ts";
import { decodeMapPage, mapPageSeed } from "../../../src/volume/format/map-page.ts";
import { decodeSegmentHead, EXTENT_RAW } from "../../../src/volume/format/segment.ts";
import { type ParsedKey, parseKey } from "../../../src/volume/keys.ts";
import { buildStoredVolume, readStoredVolume, type StoredVolume, TrialStore } from "./stored-volume.ts";

export type Damage = "rotten" | "swapped" | "rolled back";
export const damages: readonly Damage[] = ["rotten", "swapped", "rolled back"];

/** Reads the whole object as the program reads its parts; throws where something does not hold. */
export function checkObject(key: string, body: Buffer): void {
  const parsed = parseKey(key);
  assert.ok(parsed !== undefined, `no key: ${key}`);
  switch (parsed.kind) {
    case "name":
      decodeNameRecord(body, parsed);
      return;
    case "meta":
      if (parsed.number === 1) decodeConfirmation(body, parsed);
      else decodeMeta(body, parsed);
      return;
    case "epoch":
      decodeEpochClaim(body, parsed);
      return;
    case "publication":
      decodePublication(body, parsed);
      return;
    case "checkpoint":
      decodeCheckpoint(body, { uid: parsed.uid, epoch: parsed.epoch, sequence: parsed.number });
      return;
    case "map":
      for (const { shard, offset, length } of decodeMapObjectHead(body, { ...parsed, sequence: parsed.number })) {
        const seed = mapPageSeed(parsed.uid, parsed.epoch, parsed.number);
        decodeMapPage(body.subarray(offset, offset + length), shard, seed);
      }
      return;
    case "segment":
      checkSegment(parsed, body);
      return;
    case "location":
    case "node":
    case "removal":
      assert.fail(`a volume has no object of kind ${parsed.kind}`);
  }
}

function checkSegment(parsed: ParsedKey & { kind: "segment" }, body: Buffer): void {
  const { extents, dataOffset, dataLength } = decodeSegmentHead(body, parsed);
  const seed = segmentFrameSeed(parsed.uid, parsed.epoch, parsed.sequence);
  if (body.length < dataOffset + dataLength) throw new OperationError("corrupt", "the object is cut short");
  for (let index = 0; index < extents.count; index += 1) {
    if (extents.kind[index] !== EXTENT_RAW) continue;
    for (let block = 0; block < extents.blockCount[index]; block += 1) {
      const at = extents.offset[index] + block * RAW_FRAME_BYTES;
      if (isIntactRawFrame(body, at, extents.lba[index] + block, seed)) continue;
      throw new OperationError("corrupt", "a frame fails its checksum");
    }
  }
}

function kindOf(key: string): string {
  return parseKey(key)?.kind ?? "none";
}

/** The body that a trial puts under `key`; undefined where there is none of this damage for it. */
export function damagedBody(
  objects: StoredVolume["objects"],
  key: string,
  damage: Damage,
  random: SeededRandom,
): Buffer | undefined {
  const body = objects.get(key)!;
  if (damage === "rotten") return rotten(body, random);
  const others = [...objects.keys()].filter(
    (other) => other !== key && (damage === "swapped" || kindOf(other) === kindOf(key)),
  );
  const earlier = others.filter((other) => damage === "swapped" || isEarlier(other, key));
  return earlier.length === 0 ? undefined : Buffer.from(objects.get(earlier[random.below(earlier.length)])!);
}

/** Whether one key of a kind was written before another: by epoch, then by number. */
function isEarlier(one: string, other: string): boolean {
  return orderOf(one) < orderOf(other);
}

function orderOf(key: string): string {
  const parts = key.split("/");
  return parts[1] === "log" ? parts.slice(-2).join("/") : key;
}

function rotten(body: Buffer, random: SeededRandom): Buffer {
  const bytes = Buffer.from(body);
  const at = random.below(bytes.length);
  switch (random.below(5)) {
    case 0:
      return bytes.subarray(0, at);
    case 1:
      random.bytes(Math.min(512, bytes.length - at)).copy(bytes, at);
      return bytes;
    case 2:
      bytes.fill(bytes[at] === 0 ? 0xff : 0, at, Math.min(bytes.length, at + 1 + random.below(4096)));
      return bytes;
    default:
      for (let turn = random.below(4); turn >= 0; turn -= 1) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
      return bytes;
  }
}

export interface DamageReport {
  trials: number;
  foundInObject: number;
  /** Trials in which the volume did not open, or refused blocks. */
  refused: number;
  /** Trials in which every block was right: what was damaged is not needed any more. */
  unharmed: number;
  byKind: Map<string, number>;
}

/** Throws at the first damage that is not found, or block that is wrong. */
export async function damageObjects(options: { seed: number; trials: number }): Promise<DamageReport> {
  const stored = await buildStoredVolume(options.seed);
  const keys = [...stored.objects.keys()];
  const report: DamageReport = { trials: 0, foundInObject: 0, refused: 0, unharmed: 0, byKind: new Map() };
  for (let trial = 0; report.trials < options.trials; trial += 1) {
    const random = new SeededRandom(Math.imul(options.seed, 0x9e3779b1) ^ trial);
    const key = keys[random.below(keys.length)];
    const damage = damages[random.below(damages.length)];
    const body = damagedBody(stored.objects, key, damage, random);
    if (body === undefined || body.equals(stored.objects.get(key)!)) continue;
    report.trials += 1;
    const where = `seed=${options.seed} trial=${trial} ${damage} ${key}`;
    assert.throws(
      () => checkObject(key, body),
      (error) => error instanceof OperationError && error.kind === "corrupt",
      `not found: ${where}`,
    );
    report.foundInObject += 1;
    const store = new TrialStore(stored.objects);
    store.replace(key, body);
    const { opened, refused, wrong } = await readStoredVolume(store, stored.blocks);
    assert.deepEqual(wrong, [], `wrong blocks: ${where}`);
    if (opened && refused === 0) report.unharmed += 1;
    else report.refused += 1;
    const label = `${kindOf(key)} ${damage}`;
    report.byKind.set(label, (report.byKind.get(label) ?? 0) + 1);
  }
  return report;
}
