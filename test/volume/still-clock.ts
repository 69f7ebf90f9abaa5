/** A clock that stands still until a test moves it. */
import type { Clock, Timer } from "../../src/base/clock.ts";

export class StillClock implements Clock {
  ms = 0;

  now(): number {
    return this.ms;
  }

  monotonicMs(): number {
    return this.ms;
  }

  async sleep(ms: number): Promise<void> {
    this.ms += ms;
  }

  after(): Timer {
    return { cancel() {} };
  }

  async yield(): Promise<void> {}
}
