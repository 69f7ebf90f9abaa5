/**
 * Faults on demand: before each request a plan is asked, which may let it pass, delay it, fail it before it takes effect,
 * or fail it after it has. For tests, the simulator and trials of what stands above a device.
 */
import type { Clock } from "../base/clock.ts";
import type { OperationError } from "../base/errors.ts";
import type { BlockDevice, MaybePromise } from "./device.ts";
import type { BlockOperation } from "./measured-device.ts";

export interface BlockFault {
  /** Waits this long before anything else happens. */
  delayMs?: number;
  /** Waits for this, after the delay: a test decides when the request goes on. */
  hold?: Promise<void>;
  /** What the request fails with. */
  error?: OperationError;
  /** With an error: whether the request has taken effect all the same. */
  takesEffect?: boolean;
}

export interface BlockRequest {
  operation: BlockOperation;
  offset: number;
  length: number;
}

export type FaultPlan = (request: BlockRequest) => BlockFault | undefined;

export class FaultyDevice implements BlockDevice {
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly #inner: BlockDevice;
  readonly #clock: Clock;
  readonly #plan: FaultPlan;

  constructor(inner: BlockDevice, clock: Clock, plan: FaultPlan) {
    this.#inner = inner;
    this.#clock = clock;
    this.#plan = plan;
    this.blockSizeBytes = inner.blockSizeBytes;
    this.readOnly = inner.readOnly;
  }

  /** The inner device's, which may grow. */
  get sizeBytes(): number {
    return this.#inner.sizeBytes;
  }

  read(offset: number, target: Buffer): MaybePromise<void> {
    return this.#apply({ operation: "read", offset, length: target.length }, () => this.#inner.read(offset, target));
  }

  write(offset: number, source: Buffer, fua: boolean): MaybePromise<void> {
    const request: BlockRequest = { operation: "write", offset, length: source.length };
    return this.#apply(request, () => this.#inner.write(offset, source, fua));
  }

  writeZeroes(offset: number, length: number, fua: boolean): MaybePromise<void> {
    const request: BlockRequest = { operation: "write-zeroes", offset, length };
    return this.#apply(request, () => this.#inner.writeZeroes(offset, length, fua));
  }

  trim(offset: number, length: number, fua: boolean): MaybePromise<void> {
    return this.#apply({ operation: "trim", offset, length }, () => this.#inner.trim(offset, length, fua));
  }

  flush(): MaybePromise<void> {
    return this.#apply({ operation: "flush", offset: 0, length: 0 }, () => this.#inner.flush());
  }

  beginBatch(): void {
    this.#inner.beginBatch?.();
  }

  commitBatch(): void {
    this.#inner.commitBatch?.();
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }

  #apply(request: BlockRequest, run: () => MaybePromise<void>): MaybePromise<void> {
    const fault = this.#plan(request);
    return fault === undefined ? run() : this.#suffer(fault, run);
  }

  async #suffer(fault: BlockFault, run: () => MaybePromise<void>): Promise<void> {
    if (fault.delayMs !== undefined) await this.#clock.sleep(fault.delayMs);
    await fault.hold;
    if (fault.error !== undefined && fault.takesEffect !== true) throw fault.error;
    await run();
    if (fault.error !== undefined) throw fault.error;
  }
}
