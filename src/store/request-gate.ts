/**
 * When a request may leave for a store that does badly. One gate stands before all requests of a kind (reads, writes)
 * to a store, whoever sends them, so that a thousand waiting requests burden a store in trouble no more than one does.
 *
 * | state  | requests                                           | leaves it                                              |
 * |--------|----------------------------------------------------|--------------------------------------------------------|
 * | open   | up to `limit` at a time, the others wait in order  | 8 failures with no answer between, or asked to slow down at a limit of one → closed |
 * | closed | all wait; one leaves as a probe after each pause   | any answer, of a probe or an earlier request → open    |
 *
 * - The pause between probes grows from 100 ms to 3 s, so that a store that is back is found within 5 s. A probe that
 *   has no answer after 2 s does not hold up the next one.
 * - `limit` is halved when the store asks for fewer requests (once for all that were under way together), and grows
 *   by one for every `limit` answers; after an outage it starts at 4 and grows by one an answer up to where it was.
 * - When the store is found again, requests that were sent long before (5 s, and five times what the answer took) are lost:
 *   they are to be sent anew.
 * - The gate decides when a request leaves, never whether: it fails none that its caller has not given up.
 */
import type { Clock } from "../base/clock.ts";
import { OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";

const MAX_CONCURRENT = 256;
const RESTART_CONCURRENT = 4;
const FAILURES_TO_CLOSE = 8;
const FIRST_PROBE_PAUSE_MS = 100;
const LONGEST_PROBE_PAUSE_MS = 3000;
const PROBE_PATIENCE_MS = 2000;
const TELL_AFTER_MS = 1000;
const LOST_AFTER_MS = 5000;
const LOST_AFTER_ANSWERS = 5;

/** How a request ended: the store did its work or refused it knowingly, asked for fewer requests, did not answer, or nobody waits any more. */
export type Verdict = "answered" | "slow-down" | "failed" | "given-up";

/** The right to send one request; given back by leave(). */
export interface Pass {
  /** Requests of one round were under way together: their being told to slow down counts once. */
  readonly round: number;
  /** Begins anew whenever the gate closes or opens: requests of an earlier era may hang for long and count no more. */
  readonly era: number;
  readonly sentMs: number;
  /** Aborts where the request is as good as lost: send it again. */
  readonly lost: AbortSignal;
  readonly loseIt: () => void;
  /** Tells the loop of probes that this one has ended. */
  readonly ended: (() => void) | undefined;
}

export interface RequestGateParts {
  clock: Clock;
  random: Random;
  log: Log;
  /** What passes here, for the log. */
  requests: "reads" | "writes";
}

interface Waiter {
  admit: (pass: Pass) => void;
  giveUp: (reason: OperationError) => void;
}

export class RequestGate {
  readonly #parts: RequestGateParts;
  readonly #queue = new Set<Waiter>();
  readonly #sent = new Set<Pass>();
  #inFlight = 0;
  #limit = MAX_CONCURRENT;
  /** Up to here the limit grows with every answer. */
  #quickBelow = 0;
  #round = 0;
  #era = 0;
  #failuresInARow = 0;
  #closedAtMs: number | undefined;
  #pauseMs = FIRST_PROBE_PAUSE_MS;
  #nextProbeMs = 0;
  #isProbing = false;
  #isToldAway = false;
  #lastError: OperationError | undefined;
  readonly #end = new AbortController();

  constructor(parts: RequestGateParts) {
    this.#parts = parts;
  }

  /** True while the store is taken to be away. */
  get isClosed(): boolean {
    return this.#closedAtMs !== undefined;
  }

  /** Requests that wait for their turn. */
  get waiting(): number {
    return this.#queue.size;
  }

  /** Requests that may be under way at the same time, while the gate is open. */
  get limit(): number {
    return Math.max(1, Math.floor(this.#limit));
  }

  /** The right to send a request now, or undefined where it has to wait. */
  tryEnter(): Pass | undefined {
    if (this.isClosed || this.#queue.size > 0 || this.#inFlight >= this.limit) return undefined;
    return this.#admit();
  }

  /**
   * Waits for the right to send a request, in the order of the calls. Rejects with the store's last error (else with
   * "unavailable") when `signal` aborts, `deadlineMs` (monotonic) has come, or the gate ends.
   */
  enter(signal: AbortSignal | undefined, deadlineMs: number): Promise<Pass> {
    const { clock } = this.#parts;
    return new Promise((resolve, reject) => {
      const giveUp = (): void => waiter.giveUp(this.#lastError ?? givenUp());
      const timer =
        deadlineMs === Infinity ? undefined : clock.after(Math.max(0, deadlineMs - clock.monotonicMs()), giveUp);
      const settle = (): void => {
        this.#queue.delete(waiter);
        timer?.cancel();
        signal?.removeEventListener("abort", giveUp);
      };
      const waiter: Waiter = {
        admit: (pass) => {
          settle();
          resolve(pass);
        },
        giveUp: (reason) => {
          settle();
          reject(reason);
        },
      };
      if (signal?.aborted === true || this.#end.signal.aborted) {
        timer?.cancel();
        reject(this.#lastError ?? givenUp());
        return;
      }
      signal?.addEventListener("abort", giveUp, { once: true });
      this.#queue.add(waiter);
      this.#pump();
    });
  }

  /** The request has ended; `error` where it failed. */
  leave(pass: Pass, verdict: Verdict, error?: OperationError): void {
    this.#sent.delete(pass);
    if (pass.era === this.#era) this.#inFlight -= 1;
    pass.ended?.();
    this.#lastError = error ?? this.#lastError;
    if (verdict === "answered") this.#answered(pass);
    else if (verdict !== "given-up" && pass.round === this.#round) this.#failed(verdict);
    this.#pump();
  }

  /** Nobody waits any more: all are given up. */
  close(): void {
    this.#end.abort();
    for (const waiter of this.#queue) waiter.giveUp(this.#lastError ?? givenUp());
  }

  #admit(ended?: () => void): Pass {
    this.#inFlight += 1;
    const controller = new AbortController();
    const pass: Pass = {
      round: this.#round,
      era: this.#era,
      sentMs: this.#parts.clock.monotonicMs(),
      lost: controller.signal,
      loseIt: () => controller.abort(),
      ended,
    };
    this.#sent.add(pass);
    return pass;
  }

  #answered({ sentMs }: Pass): void {
    this.#failuresInARow = 0;
    if (this.#closedAtMs !== undefined) this.#open(this.#closedAtMs, sentMs);
    else if (this.#limit < MAX_CONCURRENT) this.#limit += this.#limit < this.#quickBelow ? 1 : 1 / this.#limit;
  }

  #failed(verdict: "slow-down" | "failed"): void {
    if (this.isClosed) return;
    this.#failuresInARow += 1;
    if (this.#failuresInARow >= FAILURES_TO_CLOSE) this.#close("away");
    else if (verdict === "slow-down") this.#slowDown();
  }

  #slowDown(): void {
    if (this.#limit < 2) {
      this.#close("slow");
      return;
    }
    this.#round += 1;
    // What the failed request had as its company, not what the limit would have allowed.
    this.#limit = Math.max(1, Math.min(this.#limit, this.#inFlight + 1) / 2);
    this.#quickBelow = 0;
    this.#parts.log.debug("the store asks for fewer requests", { requests: this.#parts.requests, limit: this.limit });
  }

  #close(because: "away" | "slow"): void {
    const { clock } = this.#parts;
    this.#closedAtMs = clock.monotonicMs();
    this.#isToldAway = false;
    this.#beginEra();
    this.#quickBelow = because === "away" ? this.#limit : 0;
    this.#limit = because === "away" ? Math.min(RESTART_CONCURRENT, this.#limit) : 1;
    this.#pauseMs = FIRST_PROBE_PAUSE_MS;
    this.#planProbe();
  }

  #open(closedAtMs: number, answeredSentMs: number): void {
    const { clock, log, requests } = this.#parts;
    this.#closedAtMs = undefined;
    this.#beginEra();
    const nowMs = clock.monotonicMs();
    // What was sent before may hang on connections that died meanwhile, and would do so for minutes.
    const patienceMs = Math.max(LOST_AFTER_MS, LOST_AFTER_ANSWERS * (nowMs - answeredSentMs));
    for (const pass of this.#sent) if (nowMs - pass.sentMs > patienceMs) pass.loseIt();
    const awayMs = Math.round(nowMs - closedAtMs);
    if (this.#isToldAway) log.info("the store answers again", { requests, awayMs, waiting: this.waiting });
  }

  #beginEra(): void {
    this.#era += 1;
    this.#round += 1;
    this.#inFlight = 0;
  }

  #pump(): void {
    if (this.isClosed) {
      if (!this.#isProbing && this.#queue.size > 0) void this.#probe();
      return;
    }
    for (const waiter of this.#queue) {
      if (this.#inFlight >= this.limit) return;
      waiter.admit(this.#admit());
    }
  }

  #planProbe(): void {
    const { clock, random } = this.#parts;
    this.#nextProbeMs = clock.monotonicMs() + this.#pauseMs * (0.5 + random.fraction() / 2);
    this.#pauseMs = Math.min(this.#pauseMs * 2, LONGEST_PROBE_PAUSE_MS);
  }

  /** A store that fails now and then, or wants fewer requests, closes the gate for a moment, again and again. */
  #tellAway(): void {
    const { clock, log, requests } = this.#parts;
    if (this.#isToldAway || this.#closedAtMs === undefined) return;
    if (clock.monotonicMs() - this.#closedAtMs < TELL_AFTER_MS) return;
    this.#isToldAway = true;
    const error = this.#lastError?.message;
    const fields = { requests, ...(error === undefined ? {} : { error }) };
    log.warn("the store is away: requests wait, one at a time asks for it", fields);
  }

  /** Sends one waiting request after the other, while the gate is closed and somebody waits. */
  async #probe(): Promise<void> {
    const { clock } = this.#parts;
    this.#isProbing = true;
    try {
      while (this.isClosed && this.#queue.size > 0) {
        await clock.sleep(Math.max(0, this.#nextProbeMs - clock.monotonicMs()), this.#end.signal);
        const [waiter] = this.#queue;
        if (!this.isClosed || waiter === undefined) return;
        const { promise: ended, resolve } = Promise.withResolvers<void>();
        waiter.admit(this.#admit(resolve));
        const timer = clock.after(PROBE_PATIENCE_MS, resolve);
        await ended;
        timer.cancel();
        this.#tellAway();
        this.#planProbe();
      }
    } catch {
      // The gate has ended: nobody waits any more.
    } finally {
      this.#isProbing = false;
    }
  }
}

function givenUp(): OperationError {
  return new OperationError("unavailable", "store request was given up");
}
