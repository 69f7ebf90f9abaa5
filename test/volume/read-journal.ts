/** Reading blocks from a journal as the read path does, on the calling thread. */
import { FRAME_HEADER_BYTES, RAW_FRAME_BYTES } from "../../src/volume/format/frame.ts";
import { BLOCK_BYTES } from "../../src/volume/identity.ts";
import type { Journal } from "../../src/volume/journal.ts";

/** The `blocks` blocks from `lba` on whose frames start at `position`; throws "corrupt" where one is not intact. */
export function readJournal(journal: Journal, position: number, lba: number, blocks: number): Buffer {
  const frames = Buffer.alloc(blocks * RAW_FRAME_BYTES);
  journal.readFrames(position, lba, blocks, frames);
  const payloads = Array.from({ length: blocks }, (_, index) =>
    frames.subarray(index * RAW_FRAME_BYTES + FRAME_HEADER_BYTES).subarray(0, BLOCK_BYTES),
  );
  return Buffer.concat(payloads);
}
