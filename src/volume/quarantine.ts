/**
 * Journal files that must not be replayed and may hold what exists nowhere else, kept for people to look at. They are
 * named <set>-<file number>.quarantine, both 16 hex digits; a later set has a higher number. No recovery looks at them.
 *
 * Files are renamed one at a time and none is ever overwritten, so a crash at any moment leaves each of them under its
 * old or its new name, and the next start sets aside what is left. Bounded: beyond `limitBytes` the oldest go, but never
 * one that was set aside by the same call, and none before the names of the new ones are durable.
 */
import type { Disk } from "../base/disk.ts";
import { isKind } from "../base/errors.ts";

const suffix = ".quarantine";
const namePattern = /^[0-9a-f]{16}-[0-9a-f]{16}\.quarantine$/;

/** Renames `files` (closed by the caller); returns their new names. Durable when it resolves. */
export async function quarantine(
  disk: Disk,
  files: readonly { number: number; name: string }[],
  limitBytes: number,
): Promise<string[]> {
  const earlier = (await disk.list()).filter((name) => namePattern.test(name)).toSorted();
  const set = hex(1 + (earlier.length === 0 ? 0 : Number.parseInt(earlier[earlier.length - 1], 16)));
  const kept: string[] = [];
  for (const { number, name } of files) {
    const target = `${set}-${hex(number)}${suffix}`;
    await disk.rename(name, target);
    kept.push(target);
  }
  await disk.sync();
  let bytes = 0;
  for (const name of [...earlier, ...kept].toReversed()) {
    bytes += await sizeOf(disk, name);
    if (bytes > limitBytes && !kept.includes(name)) await disk.remove(name);
  }
  return kept;
}

/** Nothing where people have removed the file meanwhile. */
async function sizeOf(disk: Disk, name: string): Promise<number> {
  try {
    const file = await disk.open(name);
    const sizeBytes = file.sizeBytes();
    await file.close();
    return sizeBytes;
  } catch (error) {
    if (isKind(error, "not-found")) return 0;
    throw error;
  }
}

function hex(number: number): string {
  return number.toString(16).padStart(16, "0");
}
