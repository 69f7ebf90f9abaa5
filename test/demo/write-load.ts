/**
 * The write load under which the server is killed: a process that writes records over a few files and flushes them,
 * and tells each flush as it is acknowledged. A record's bytes follow from its number, so that the reader knows what
 * every place must hold. As a program: `write-load.ts DIRECTORY`, ended by the end of its standard input.
 *
 * Record n of a lane stands at slot n modulo SLOTS, so old records are overwritten all the time. Lines on standard
 * output: "flushed <lane> <records>" for each acknowledged flush, "done" after the last; an error ends it with status 1.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";

export const LANES = 3;
const SLOTS = 256;
const recordBytes = 32 * 1024;
const recordsPerFlush = 8;

function lanePath(directory: string, lane: number): string {
  return join(directory, `lane-${lane}`);
}

/** The bytes of a record: an xorshift sequence from its lane and number. */
function recordOf(lane: number, number: number): Buffer {
  const words = new Uint32Array(recordBytes / 4);
  let state = (lane + 1) * 0x9e3779b1 + number * 0x85ebca6b + 1;
  for (let index = 0; index < words.length; index += 1) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[index] = state;
  }
  return Buffer.from(words.buffer);
}

/** Compares every slot with the last record that was written to it; `totals` are the lanes' numbers of records. */
export function compareLanes(directory: string, totals: readonly number[]): string[] {
  const differences: string[] = [];
  for (const [lane, total] of totals.entries()) {
    const fd = openSync(lanePath(directory, lane), "r");
    const found = Buffer.alloc(recordBytes);
    for (let number = Math.max(0, total - SLOTS); number < total; number += 1) {
      const count = readSync(fd, found, 0, recordBytes, (number % SLOTS) * recordBytes);
      if (count !== recordBytes || !found.equals(recordOf(lane, number))) {
        differences.push(`record ${number} of lane ${lane} is not as it was acknowledged`);
      }
    }
    closeSync(fd);
  }
  return differences;
}

/** Bytes that so many records of a lane are. */
export function writtenBytes(records: number): number {
  return records * recordBytes;
}

async function runLane(directory: string, lane: number, isOver: () => boolean): Promise<void> {
  const file = await open(lanePath(directory, lane), "wx");
  for (let number = 0; !isOver();) {
    const end = number + recordsPerFlush;
    for (; number < end; number += 1) {
      const record = recordOf(lane, number);
      const position = (number % SLOTS) * recordBytes;
      for (let at = 0; at < recordBytes;) {
        at += (await file.write(record, at, recordBytes - at, position + at)).bytesWritten;
      }
    }
    await file.datasync();
    process.stdout.write(`flushed ${lane} ${number}\n`);
  }
  await file.close();
}

async function main(directory: string): Promise<void> {
  let isOver = false;
  process.stdin.resume().once("end", () => (isOver = true));
  await Promise.all(Array.from({ length: LANES }, (_, lane) => runLane(directory, lane, () => isOver)));
  process.stdout.write("done\n");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(process.argv[2]).catch((error: unknown) => {
    process.stderr.write(`${describe(error)}\n`);
    process.exit(1);
  });
}
