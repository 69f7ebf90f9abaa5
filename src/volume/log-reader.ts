/**
 * Reads heads of log objects: the only way in which recovery, fencing and the checker look at the log. A head is the
 * envelope with its index, never the data.
 */
import type { ObjectStore, RequestOptions } from "../store/object-store.ts";
import { ENVELOPE_BYTES, peekEnvelope } from "./format/envelope.ts";
import { type DecodedSegmentHead, decodeSegmentHead, segmentDataOffset } from "./format/segment.ts";
import type { Epoch, SegmentSeq, VolumeUid } from "./identity.ts";
import { segmentKey } from "./keys.ts";

/** Holds the index of most segments, so that one request is enough. */
const FIRST_READ_BYTES = 64 * 1024;
/** Log objects asked for at once: few at first, since most logs are short. */
const WINDOWS = [4, 16, 64] as const;

export class LogReader {
  readonly #store: ObjectStore;
  readonly #uid: VolumeUid;
  readonly #options: RequestOptions;

  constructor(store: ObjectStore, uid: VolumeUid, options: RequestOptions = {}) {
    this.#store = store;
    this.#uid = uid;
    this.#options = options;
  }

  /** The head of one log object, or undefined where there is none. "corrupt" where it is not what its key says. */
  async head(epoch: Epoch, sequence: SegmentSeq): Promise<DecodedSegmentHead | undefined> {
    const key = segmentKey(this.#uid, epoch, sequence);
    const expected = { uid: this.#uid, epoch, sequence };
    let decoded: DecodedSegmentHead | undefined;
    const verify = (bytes: Buffer, totalBytes: number): void => {
      // Of an index that goes on behind what was read nothing can be said yet.
      if (neededBytes(bytes, totalBytes) === undefined) decoded = decodeSegmentHead(bytes, expected);
    };
    for (let length = FIRST_READ_BYTES; ;) {
      const answer = await this.#store.getRange(key, { offset: 0, length }, { ...this.#options, verify });
      if (answer === undefined) return undefined;
      const needed = neededBytes(answer.bytes, answer.totalBytes);
      // A bare store verifies nothing.
      if (needed === undefined) return decoded ?? decodeSegmentHead(answer.bytes, expected);
      length = needed;
    }
  }

  /**
   * Heads of one epoch in order from `first`, up to `last` where that is given, else up to the first gap; undefined is
   * yielded for the gap, with its sequence. Asking again for a sequence that came meanwhile is the caller's business.
   */
  async *heads(
    epoch: Epoch,
    first: SegmentSeq,
    last?: SegmentSeq,
  ): AsyncGenerator<{ sequence: SegmentSeq; head: DecodedSegmentHead | undefined }> {
    let next: number = first;
    for (let turn = 0; last === undefined || next <= last; turn += 1) {
      let count = WINDOWS[Math.min(turn, WINDOWS.length - 1)] as number;
      if (last !== undefined) count = Math.min(last - next + 1, 64);
      const sequences = Array.from({ length: count }, (_, index) => (next + index) as SegmentSeq);
      const heads = await Promise.all(sequences.map((sequence) => this.head(epoch, sequence)));
      for (const [index, head] of heads.entries()) {
        yield { sequence: sequences[index], head };
        if (head === undefined) return;
      }
      next += count;
    }
  }
}

/** How long the head is, where that is more than `bytes`, and not more than the object has. */
function neededBytes(bytes: Buffer, totalBytes: number): number | undefined {
  if (bytes.length < ENVELOPE_BYTES) return undefined;
  const needed = segmentDataOffset(peekEnvelope(bytes).sectionLength);
  return needed > bytes.length && needed <= totalBytes ? needed : undefined;
}
