/** Where the last commit in a journal's files ends, as its mark says: for tests that damage what stands there. */
import { crc32 } from "../../src/base/checksum.ts";
import { journalFrameSeed } from "../../src/volume/format/frame.ts";
import {
  COMMIT_MARK_BYTES,
  decodeFileHeader,
  FILE_HEADER_BYTES,
  readCommitMark,
} from "../../src/volume/format/journal-record.ts";
import { journalFileName } from "../../src/volume/journal-scan.ts";

const PAGE_BYTES = 4096;

/** Of the files with these names: the one with the newest header, and the end of its records; undefined where it has none. */
export function endOfJournal(
  names: readonly string[],
  contentOf: (name: string) => Buffer,
): { name: string; end: number } | undefined {
  for (const name of names.toSorted().toReversed()) {
    const content = contentOf(name);
    const header = decodeFileHeader(content);
    if (header === undefined || !name.endsWith(journalFileName(header.fileNumber))) continue;
    const journalSeed = crc32(header.journalId);
    let markAt = 0;
    for (let page = FILE_HEADER_BYTES; page < content.length; page += PAGE_BYTES) {
      const at = page + PAGE_BYTES - COMMIT_MARK_BYTES;
      const seed = journalFrameSeed(journalSeed, header.fileNumber * header.fileBytes + at);
      if (readCommitMark(content, at, seed) !== undefined) markAt = at;
    }
    const end = content.subarray(0, markAt).findLastIndex((byte) => byte !== 0) + 1;
    return markAt > 0 ? { name, end } : undefined;
  }
  return undefined;
}
