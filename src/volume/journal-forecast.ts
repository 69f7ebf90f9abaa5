/**
 * Tells the operator when a volume's journal will be full: as a number of seconds for the metric, and one line in the
 * log for each step on the way there and one for the way back, however long a step lasts.
 *
 * | level   | what it means                                                     | said as |
 * |---------|-------------------------------------------------------------------|---------|
 * | calm    | below 20 % full                                                   | info    |
 * | filling | at the speed of the last minute full within an hour               | warn    |
 * | slowed  | 70 % full or more: writers are slowed                             | warn    |
 * | full    | writers wait                                                      | warn    |
 *
 * It looks every five seconds, from 25 % full on and while anything moves; below that it costs nothing.
 */
import type { Clock, Timer } from "../base/clock.ts";
import type { Log } from "../base/log.ts";

const WATCH_FROM = 0.25;
const CALM_BELOW = 0.2;
const LOOK_INTERVAL_MS = 5000;
const WINDOW_MS = 60_000;
/** A speed measured over less says little. */
const SHORTEST_WINDOW_MS = 10_000;
const WARN_SECONDS = 3600;
/** After this many looks at which nothing had moved, there is nothing to watch. */
const STILL_LOOKS = 12;

const LEVELS = ["calm", "filling", "slowed", "full"] as const;
type Level = (typeof LEVELS)[number];

const MESSAGES: Readonly<Record<Level, string>> = {
  calm: "the journal has room again",
  filling: "the journal is filling: it takes writes faster than the store takes them over",
  slowed: "the journal is filling: writers are slowed until the store takes over what is there",
  full: "the journal is full: writers wait until the store takes over what is there",
};

export interface JournalForecastParts {
  clock: Clock;
  log: Log;
  /** How full the journal is, 0 to 1. */
  pressure: () => number;
  /** From here on writers are slowed. */
  slowFrom: number;
  /** True while a writer waits for room. */
  isFull: () => boolean;
}

export class JournalForecast {
  readonly #parts: JournalForecastParts;
  #samples: { timeMs: number; pressure: number }[] = [];
  #level: Level = "calm";
  #stillLooks = 0;
  #timer: Timer | undefined;
  #hasEnded = false;

  constructor(parts: JournalForecastParts) {
    this.#parts = parts;
  }

  /** To be called with every write, and what pressure() is. */
  noticed(pressure: number): void {
    if (this.#timer === undefined && (pressure >= WATCH_FROM || this.#level !== "calm")) this.#watch();
  }

  /** Seconds until the journal is full at the speed of the last minute: 0 when it is, Infinity where it does not fill. */
  secondsUntilFull(): number {
    const pressure = this.#parts.pressure();
    if (pressure >= 1 || this.#parts.isFull()) return 0;
    const oldest = this.#samples[0];
    if (oldest === undefined) return Infinity;
    const elapsedMs = this.#parts.clock.monotonicMs() - oldest.timeMs;
    const grown = pressure - oldest.pressure;
    if (grown <= 0 || elapsedMs < SHORTEST_WINDOW_MS) return Infinity;
    return ((1 - pressure) * elapsedMs) / grown / 1000;
  }

  /** Looks no more. */
  end(): void {
    this.#hasEnded = true;
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#samples = [];
  }

  #watch(): void {
    if (this.#hasEnded) return;
    this.#stillLooks = 0;
    this.#look();
  }

  #look(): void {
    const { clock, pressure: read } = this.#parts;
    const timeMs = clock.monotonicMs();
    const pressure = read();
    this.#stillLooks = pressure === this.#samples.at(-1)?.pressure ? this.#stillLooks + 1 : 0;
    this.#samples.push({ timeMs, pressure });
    this.#samples = this.#samples.filter((sample) => timeMs - sample.timeMs <= WINDOW_MS);
    this.#tell(pressure);
    const goesOn = pressure >= CALM_BELOW && this.#stillLooks < STILL_LOOKS;
    this.#timer = goesOn ? clock.after(LOOK_INTERVAL_MS, () => this.#look()) : undefined;
    if (!goesOn) this.#samples = [];
  }

  #tell(pressure: number): void {
    const { log } = this.#parts;
    const seconds = this.secondsUntilFull();
    const level = this.#levelAt(pressure, seconds);
    const isCalmAgain = level === "calm" && this.#level !== "calm";
    if (!isCalmAgain && LEVELS.indexOf(level) <= LEVELS.indexOf(this.#level)) return;
    this.#level = level;
    log[level === "calm" ? "info" : "warn"](MESSAGES[level], {
      operation: "write",
      percentFull: Math.round(pressure * 100),
      ...(Number.isFinite(seconds) ? { fullInSeconds: Math.round(seconds) } : {}),
    });
  }

  /** Never below the level reached before, except for "calm". */
  #levelAt(pressure: number, secondsUntilFull: number): Level {
    if (pressure < CALM_BELOW) return "calm";
    if (this.#parts.isFull()) return "full";
    if (pressure >= this.#parts.slowFrom) return "slowed";
    return secondsUntilFull < WARN_SECONDS ? "filling" : this.#level;
  }
}
