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
    const first = await this.#store.getRange(key, { offset: 0, length: FIRST_READ_BYTES }, this.#options);
    if (first === undefined) return undefined;
    let { bytes } = first;
    if (bytes.length >= ENVELOPE_BYTES) {
      const needed = segmentDataOffset(peekEnvelope(bytes).sectionLength);
      if (needed > bytes.length && needed <= first.totalBytes) {
        const range = { offset: bytes.length, length: needed - bytes.length };
        const rest = await this.#store.getRange(key, range, this.#options);
        bytes = Buffer.concat([bytes, rest?.bytes ?? Buffer.alloc(0)]);
      }
    }
    return decodeSegmentHead(bytes, { uid: this.#uid, epoch, sequence });
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
