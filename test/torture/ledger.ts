/**
 * A ledger: numbered records of one block each, written round and round into the slots of a file or device, each synced
 * before the next, each acknowledgement told. Whatever happens beneath, every slot must hold the last record that was
 * acknowledged for it, or the one that came next; on a bare device all slots together must be as they were after one
 * record.
 * As a program: `ledger.ts FILE SLOTS FIRST` writes records from number FIRST on until its standard input ends, with a
 * line "<number> <milliseconds>" for each acknowledged one (how long write and sync took), "done" after the last; an
 * error ends it with status 1.
 */
import { createHash } from "node:crypto";
import { closeSync, fdatasyncSync, openSync, writeSync } from "node:fs";
import { open } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";
import { monotonicMs } from "./figures.ts";

export const recordBytes = 4096;
const headBytes = 8;
const digestBytes = 32;

/** The bytes of record `number`: its number, bytes that follow from it, their digest. */
export function recordOf(number: number): Buffer {
  const record = Buffer.alloc(recordBytes);
  record.writeBigUInt64LE(BigInt(number), 0);
  let state = Math.imul(number, 0x9e3779b1) | 1;
  for (let at = headBytes; at < recordBytes - digestBytes; at += 4) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    record.writeInt32LE(state, at);
  }
  createHash("sha256")
    .update(record.subarray(0, -digestBytes))
    .digest()
    .copy(record, recordBytes - digestBytes);
  return record;
}

/**
 * The numbers in the slots: 0 for one that was never written, undefined for bytes that are no record. It does not hold
 * up this process while the disk is silent: what the disk waits for may run here too.
 */
export async function readSlots(file: string, slots: number): Promise<(number | undefined)[]> {
  const handle = await open(file, "r");
  try {
    const numbers: (number | undefined)[] = [];
    const found = Buffer.alloc(recordBytes);
    for (let slot = 0; slot < slots; slot += 1) {
      const { bytesRead } = await handle.read(found, 0, recordBytes, slot * recordBytes);
      numbers.push(numberIn(found.subarray(0, bytesRead), slot, slots));
    }
    return numbers;
  } finally {
    await handle.close();
  }
}

function numberIn(found: Buffer, slot: number, slots: number): number | undefined {
  if (found.every((byte) => byte === 0)) return 0;
  if (found.length < recordBytes) return undefined;
  const number = Number(found.readBigUInt64LE(0));
  return found.equals(recordOf(number)) && number % slots === slot ? number : undefined;
}

/**
 * What is wrong with slots after record `acknowledged` was acknowledged and nothing after `attempted` was begun: lines,
 * none where all is well. A record that was begun and not acknowledged may be there or not.
 */
export function ledgerFaults(
  slots: readonly (number | undefined)[],
  { acknowledged, attempted }: { acknowledged: number; attempted: number },
): string[] {
  return slots.flatMap((found, slot) => {
    const oldest = lastIn(slot, acknowledged, slots.length);
    const newest = lastIn(slot, attempted, slots.length);
    if (found === oldest || found === newest) return [];
    return [`slot ${slot} holds ${found ?? "no record"} and must hold ${oldest} or ${newest}`];
  });
}

/** The record after which the slots were as they are; undefined where they never were all at once. */
export function momentOf(slots: readonly (number | undefined)[]): number | undefined {
  const newest = Math.max(...slots.map((found) => found ?? 0));
  const isMoment = slots.every((found, slot) => found === lastIn(slot, newest, slots.length));
  return isMoment ? newest : undefined;
}

/** The last record up to `number` that belongs into the slot, 0 for none. Records are numbered from 1. */
function lastIn(slot: number, number: number, slots: number): number {
  if (number < 1) return 0;
  const last = number - ((((number - slot) % slots) + slots) % slots);
  return Math.max(last, 0);
}

/** Lets what came on standard input be seen. */
function breathe(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

async function main(file: string, slots: number, first: number): Promise<void> {
  let isOver = false;
  process.stdin.resume().once("end", () => (isOver = true));
  const fd = openSync(file, "r+");
  for (let number = first; !isOver; number += 1) {
    const startMs = monotonicMs();
    const record = recordOf(number);
    const at = (number % slots) * recordBytes;
    if (writeSync(fd, record, 0, recordBytes, at) !== recordBytes) throw new Error("a record was written in part");
    fdatasyncSync(fd);
    process.stdout.write(`${number} ${(monotonicMs() - startMs).toFixed(1)}\n`);
    await breathe();
  }
  closeSync(fd);
  process.stdout.write("done\n");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [file, slots, first] = process.argv.slice(2);
  await main(file, Number(slots), Number(first)).catch((error: unknown) => {
    process.stderr.write(`${describe(error)}\n`);
    process.exit(1);
  });
}
