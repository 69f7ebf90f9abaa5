/**
 * Backpressure: who may write now. While the journal has room, everybody, at once. From 70 % full on, writers are
 * slowed to the speed at which S3 drains it, but never below what would fill the rest in ten minutes; when it is full
 * they wait. Nobody is ever refused because S3 is slow or away.
 *
 * Those who wait go in the order in which they came.
 */
import type { Clock } from "../base/clock.ts";
import type { OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { DirtyExtents } from "./dirty-extents.ts";
import { RAW_FRAME_BYTES } from "./format/frame.ts";
import type { Journal } from "./journal.ts";
import { JournalForecast } from "./journal-forecast.ts";

const SLOW_FROM = 0.7;
/** How long an outage of S3 the last part of the journal is spread over. */
const OUTAGE_SECONDS = 600;
/** Extents of the overlay at most: bounds memory where writes are tiny against the journal (20 bytes an extent). */
const MAX_OVERLAY_EXTENTS = 2_000_000;
const RATE_WINDOW_MS = 2000;
const LONGEST_PAUSE_MS = 1000;

export interface AdmissionOptions {
  clock: Clock;
  log: Log;
  journal: Journal;
  overlay: DirtyExtents;
  /** Journal bytes given back since the volume was opened. */
  releasedBytes: () => number;
  /** Sends what is dirty on its way, so that room comes. */
  push: () => void;
}

export class Admission {
  readonly #options: AdmissionOptions;
  #queue: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #failure: OperationError | undefined;
  #ended = Promise.withResolvers<never>();
  #rateFrom = { timeMs: 0, releasedBytes: 0 };
  #bytesPerSecond = 0;
  #waitsForRoom = false;
  readonly #forecast: JournalForecast;

  constructor(options: AdmissionOptions) {
    this.#options = options;
    this.#forecast = new JournalForecast({
      clock: options.clock,
      log: options.log,
      pressure: () => this.pressure(),
      slowFrom: SLOW_FROM,
      isFull: () => this.#waitsForRoom,
    });
    this.#ended.promise.catch(() => undefined);
  }

  /** True where `blocks` blocks of data may be appended at once. */
  isOpen(blocks: number): boolean {
    const pressure = this.pressure();
    this.#forecast.noticed(pressure);
    return this.#waiting === 0 && pressure < SLOW_FROM && this.#options.journal.hasRoom(blocks);
  }

  /** See JournalForecast. */
  secondsUntilFull(): number {
    return this.#forecast.secondsUntilFull();
  }

  /** How full the journal is, 0 to 1 (and above, for a moment). */
  pressure(): number {
    const { journal, overlay } = this.#options;
    return Math.max(journal.usedBytes() / journal.limitBytes, overlay.count / MAX_OVERLAY_EXTENTS);
  }

  /** Runs `append` when there is room for `blocks` blocks of data, after those who came before. */
  async run(blocks: number, append: () => void): Promise<void> {
    this.#waiting += 1;
    const turn = this.#queue.then(async () => {
      try {
        await this.#wait(blocks);
        append();
      } finally {
        this.#waiting -= 1;
      }
    });
    this.#queue = turn.catch(() => undefined);
    await turn;
  }

  /** Ends all waiting with `error`. */
  fail(error: OperationError): void {
    this.#failure = error;
    this.#forecast.end();
    this.#ended.reject(error);
  }

  async #wait(blocks: number): Promise<void> {
    const { clock, journal, push } = this.#options;
    let owedMs =
      this.pressure() < SLOW_FROM ? 0 : ((blocks + 1) * RAW_FRAME_BYTES * 1000) / this.#allowedBytesPerSecond();
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure;
      const pressure = this.pressure();
      if (pressure < SLOW_FROM) owedMs = 0;
      if (owedMs > 0) {
        const pause = Math.min(owedMs, LONGEST_PAUSE_MS);
        await Promise.race([clock.sleep(pause), this.#ended.promise]);
        owedMs -= pause;
        continue;
      }
      if (pressure < 1 && journal.hasRoom(blocks)) return;
      push();
      // Room comes with a file made ready or with space given back; the pauses are for pressure of other kinds, and for a
      // disk that refused another file: it does not say when it takes one again, and has to be asked.
      const room = journal.hasRoom(blocks)
        ? clock.sleep(LONGEST_PAUSE_MS / 10)
        : Promise.race([journal.waitForRoom(), clock.sleep(LONGEST_PAUSE_MS)]);
      this.#waitsForRoom = true;
      this.#forecast.noticed(pressure);
      await Promise.race([room, this.#ended.promise]).finally(() => (this.#waitsForRoom = false));
    }
  }

  /** The speed at which S3 drains the journal now, or what spreads the rest over an outage, whichever is more. */
  #allowedBytesPerSecond(): number {
    const { clock, journal, releasedBytes } = this.#options;
    const now = clock.monotonicMs();
    const elapsed = now - this.#rateFrom.timeMs;
    if (elapsed >= RATE_WINDOW_MS) {
      this.#bytesPerSecond = ((releasedBytes() - this.#rateFrom.releasedBytes) * 1000) / elapsed;
      this.#rateFrom = { timeMs: now, releasedBytes: releasedBytes() };
    }
    const rest = Math.max(RAW_FRAME_BYTES, journal.limitBytes - journal.usedBytes());
    return Math.max(this.#bytesPerSecond, rest / OUTAGE_SECONDS);
  }
}
