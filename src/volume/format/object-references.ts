/**
 * A table of objects that a map page or a checkpoint points to, in columns: whose (lineage), which epoch's, which one.
 *
 *    0 u16 lineage   2 6B 0   8 u64 epoch   16 u64 sequence
 *
 * Lineage 0 is the volume itself, others are indexes (from 1) into the lineage of the checkpoint root.
 */
import { checkZero, corrupt, readU64, writeU64 } from "./fields.ts";

export const OBJECT_REFERENCE_BYTES = 24;

export class ObjectReferences {
  count = 0;
  lineage: Uint16Array;
  epoch: Float64Array;
  sequence: Float64Array;

  constructor(capacity = 16) {
    this.lineage = new Uint16Array(capacity);
    this.epoch = new Float64Array(capacity);
    this.sequence = new Float64Array(capacity);
  }

  /** Appends a row and returns its index. Rows are not made unique here. */
  push(reference: { lineage: number; epoch: number; sequence: number }): number {
    const index = this.count;
    if (index === this.lineage.length) this.#grow();
    this.lineage[index] = reference.lineage;
    this.epoch[index] = reference.epoch;
    this.sequence[index] = reference.sequence;
    this.count = index + 1;
    return index;
  }

  #grow(): void {
    const capacity = Math.max(16, this.lineage.length * 2);
    const { lineage, epoch, sequence } = this;
    this.lineage = new Uint16Array(capacity);
    this.lineage.set(lineage);
    this.epoch = new Float64Array(capacity);
    this.epoch.set(epoch);
    this.sequence = new Float64Array(capacity);
    this.sequence.set(sequence);
  }
}

/** Writes the table at `at`; `bytes` must be zero there. */
export function writeReferences(bytes: Buffer, at: number, references: ObjectReferences): void {
  for (let index = 0; index < references.count; index += 1, at += OBJECT_REFERENCE_BYTES) {
    bytes.writeUInt16LE(references.lineage[index], at);
    writeU64(bytes, at + 8, references.epoch[index]);
    writeU64(bytes, at + 16, references.sequence[index]);
  }
}

/** Reads `count` rows, which the caller knows to lie inside `bytes`. */
export function readReferences(bytes: Buffer, at: number, count: number): ObjectReferences {
  const references = new ObjectReferences(count);
  for (let index = 0; index < count; index += 1, at += OBJECT_REFERENCE_BYTES) {
    checkZero(bytes, at + 2, at + 8);
    const epoch = readU64(bytes, at + 8);
    if (epoch === 0) throw corrupt("object reference names no epoch", { index });
    references.push({ lineage: bytes.readUInt16LE(at), epoch, sequence: readU64(bytes, at + 16) });
  }
  return references;
}
