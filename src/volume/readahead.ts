/**
 * Finds sequential readers of a volume and says what they will want next. It works on the volume's own bytes, not on
 * objects: a file that is read in order may lie in many segments, and the one who knows the map resolves the range.
 * Up to four readers at a time, the longest unused one gives way. Pure: no I/O, no clock.
 *
 * A reader that goes on where it had stopped, give or take 128 KiB because requests overtake each other, is sequential
 * after 64 KiB. Its window begins at 128 KiB and doubles up to 8 MiB each time it has used half of what was fetched
 * ahead. Reading the same place again is no progress, and random readers of a large volume never get that far.
 */
export const MIN_WINDOW_BYTES = 128 * 1024;
export const MAX_WINDOW_BYTES = 8 * 1024 * 1024;
const MAX_STREAMS = 4;
const GAP_BYTES = 128 * 1024;
/** Sequential bytes before the first readahead. */
const TRUST_BYTES = 64 * 1024;

export interface AheadRange {
  offset: number;
  length: number;
}

interface Stream {
  /** Where this reader's farthest request ended. */
  end: number;
  /** Bytes of progress so far. */
  run: number;
  /** Up to where readahead was asked for. */
  aheadEnd: number;
  window: number;
}

export class Readahead {
  readonly #limit: number;
  /** Most recently used first. */
  readonly #streams: Stream[] = [];

  /** `limit` is the end of the volume in bytes. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Notes a read of the volume; answers what to fetch ahead now, or undefined. */
  observe(offset: number, length: number): AheadRange | undefined {
    const end = offset + length;
    const at = this.#streams.findIndex((stream) => Math.abs(offset - stream.end) <= GAP_BYTES);
    if (at < 0) {
      if (this.#streams.length === MAX_STREAMS) this.#streams.pop();
      this.#streams.unshift({ end, run: length, aheadEnd: end, window: MIN_WINDOW_BYTES });
      return undefined;
    }
    const stream = this.#streams[at];
    if (at > 0) {
      this.#streams.splice(at, 1);
      this.#streams.unshift(stream);
    }
    stream.run += Math.min(length, Math.max(0, end - stream.end));
    stream.end = Math.max(stream.end, end);
    stream.aheadEnd = Math.max(stream.aheadEnd, stream.end);
    if (stream.run < TRUST_BYTES || stream.aheadEnd - stream.end > stream.window / 2) return undefined;
    return this.#advance(stream);
  }

  #advance(stream: Stream): AheadRange | undefined {
    const offset = stream.aheadEnd;
    const length = Math.min(stream.end + stream.window, this.#limit) - offset;
    if (length <= 0) return undefined;
    stream.aheadEnd = offset + length;
    stream.window = Math.min(stream.window * 2, MAX_WINDOW_BYTES);
    return { offset, length };
  }
}
