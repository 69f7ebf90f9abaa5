/**
 * Reading a journal's files without blocking the thread that serves volumes: what a node was given while S3 was away may
 * have left its memory long before it is read or uploaded.
 */
import type { DiskFile } from "../base/disk.ts";

const WARM_BYTES = 256 * 1024;

/** Fills `target`; without `waits` false, and anything in it, where the disk would have to be waited for. */
export function readFile(file: DiskFile, target: Buffer, offset: number, waits: boolean): boolean {
  const isThere = waits ? undefined : file.readNow(target, offset);
  if (isThere === undefined) file.readSync(target, offset);
  return isThere !== false;
}

/**
 * Has the disk bring the range into memory, as long as `isNeeded`; off the thread, and to nowhere. Never rejects: who reads
 * the range next meets the error.
 */
export async function warmFile(
  file: DiskFile,
  { offset, length }: { offset: number; length: number },
  isNeeded: () => boolean,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.min(length, WARM_BYTES));
  for (let done = 0; done < length && isNeeded(); done += buffer.length) {
    const isRead = await file.read(buffer.subarray(0, length - done), offset + done).then(
      () => true,
      () => false,
    );
    if (!isRead) return;
  }
}
