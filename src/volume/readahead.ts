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
    const stream = this.#streamAt(offset);
    if (stream === undefined) {
      this.#begin(end, length);
      return undefined;
    }
    stream.run += Math.min(length, Math.max(0, end - stream.end));
    stream.end = Math.max(stream.end, end);
    stream.aheadEnd = Math.max(stream.aheadEnd, stream.end);
    if (stream.run < TRUST_BYTES || stream.aheadEnd - stream.end > stream.window / 2) return undefined;
    return this.#advance(stream);
  }

  /** The stream that a request at `offset` goes on with, now the most recently used; most requests have none. */
  #streamAt(offset: number): Stream | undefined {
    const streams = this.#streams;
    for (let at = 0; at < streams.length; at += 1) {
      const stream = streams[at];
      if (offset - stream.end > GAP_BYTES || stream.end - offset > GAP_BYTES) continue;
      for (let above = at; above > 0; above -= 1) streams[above] = streams[above - 1];
      streams[0] = stream;
      return stream;
    }
    return undefined;
  }

  /** A new stream takes the place, and the object, of the longest unused one. */
  #begin(end: number, run: number): void {
    const streams = this.#streams;
    if (streams.length < MAX_STREAMS) streams.push({ end, run, aheadEnd: end, window: MIN_WINDOW_BYTES });
    const stream = streams[streams.length - 1];
    for (let above = streams.length - 1; above > 0; above -= 1) streams[above] = streams[above - 1];
    streams[0] = stream;
    stream.end = end;
    stream.run = run;
    stream.aheadEnd = end;
    stream.window = MIN_WINDOW_BYTES;
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
