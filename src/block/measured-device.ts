/**
 * Tells an observer about every request of a device: what, how many bytes, how long, whether it failed. The observer
 * runs on the data path and must be quick; it never changes what the request does.
 */
import type { Clock } from "../base/clock.ts";
import type { BlockDevice, MaybePromise } from "./device.ts";

export type BlockOperation = "read" | "write" | "write-zeroes" | "trim" | "flush";

export interface BlockObserver {
  /** One request is over; `bytes` is 0 for a flush; durations are milliseconds with a fraction. */
  completed(operation: BlockOperation, bytes: number, durationMs: number, failed: boolean): void;
}

export class MeasuredDevice implements BlockDevice {
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly #inner: BlockDevice;
  readonly #clock: Clock;
  readonly #observer: BlockObserver;

  constructor(inner: BlockDevice, clock: Clock, observer: BlockObserver) {
    this.#inner = inner;
    this.#clock = clock;
    this.#observer = observer;
    this.blockSizeBytes = inner.blockSizeBytes;
    this.readOnly = inner.readOnly;
  }

  /** The inner device's, which may grow. */
  get sizeBytes(): number {
    return this.#inner.sizeBytes;
  }

  read(offset: number, target: Buffer): MaybePromise<void> {
    const startMs = this.#clock.monotonicMs();
    try {
      return this.#watch("read", target.length, startMs, this.#inner.read(offset, target));
    } catch (error) {
      throw this.#threw("read", target.length, startMs, error);
    }
  }

  write(offset: number, source: Buffer, fua: boolean): MaybePromise<void> {
    const startMs = this.#clock.monotonicMs();
    try {
      return this.#watch("write", source.length, startMs, this.#inner.write(offset, source, fua));
    } catch (error) {
      throw this.#threw("write", source.length, startMs, error);
    }
  }

  writeZeroes(offset: number, length: number, fua: boolean): MaybePromise<void> {
    const startMs = this.#clock.monotonicMs();
    try {
      return this.#watch("write-zeroes", length, startMs, this.#inner.writeZeroes(offset, length, fua));
    } catch (error) {
      throw this.#threw("write-zeroes", length, startMs, error);
    }
  }

  trim(offset: number, length: number, fua: boolean): MaybePromise<void> {
    const startMs = this.#clock.monotonicMs();
    try {
      return this.#watch("trim", length, startMs, this.#inner.trim(offset, length, fua));
    } catch (error) {
      throw this.#threw("trim", length, startMs, error);
    }
  }

  flush(): MaybePromise<void> {
    const startMs = this.#clock.monotonicMs();
    try {
      return this.#watch("flush", 0, startMs, this.#inner.flush());
    } catch (error) {
      throw this.#threw("flush", 0, startMs, error);
    }
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }

  #watch(operation: BlockOperation, bytes: number, startMs: number, result: MaybePromise<void>): MaybePromise<void> {
    if (result === undefined) {
      this.#observer.completed(operation, bytes, this.#clock.monotonicMs() - startMs, false);
      return undefined;
    }
    return result.then(
      () => this.#observer.completed(operation, bytes, this.#clock.monotonicMs() - startMs, false),
      (error: unknown) => {
        throw this.#threw(operation, bytes, startMs, error);
      },
    );
  }

  #threw(operation: BlockOperation, bytes: number, startMs: number, error: unknown): unknown {
    this.#observer.completed(operation, bytes, this.#clock.monotonicMs() - startMs, true);
    return error;
  }
}
