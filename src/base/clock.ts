/**
 * Time as a dependency. Engine, server and control code take a Clock, so that the simulator can run them in
 * virtual time; system-clock.ts is the machine's. Safety never depends on a clock, only pacing does.
 */
export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Wall-clock time, milliseconds since 1970 (for records and logs only). */
  now(): number;
  /** Monotonic time in milliseconds with a fraction, for durations and deadlines. */
  monotonicMs(): number;
  /** Resolves after `ms`; rejects with the signal's reason when it aborts first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Calls `callback` once after `ms`. The timer does not keep the process alive. */
  after(ms: number, callback: () => void): Timer;
  /** Lets other work of the thread run: for loops that would hold it for more than a millisecond. */
  yield(): Promise<void>;
}
