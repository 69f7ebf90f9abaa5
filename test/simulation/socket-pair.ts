/**
 * A connected pair of stream sockets in the simulated world: the server's end is a Connection of src/nbd, the kernel's
 * end a few callbacks. Bytes arrive in order, a moment later, cut anywhere. What the server's process had not yet
 * written when it died is lost; what it had written arrives.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import type { Clock } from "../../src/base/clock.ts";
import type { Connection, Receiver } from "../../src/nbd/connection.ts";
import type { SimProcess } from "./sim-process.ts";

export interface KernelEnd {
  received(bytes: Buffer): void;
  /** The server's end is closed: nothing comes any more. */
  closed(): void;
}

export class SocketPair implements Connection {
  readonly #clock: Clock;
  readonly #random: SeededRandom;
  readonly #process: SimProcess;
  #kernel: KernelEnd | undefined;
  #receiver: Receiver | undefined;
  #paused = true;
  #incoming: Buffer[] = [];
  #incomingEnded = false;
  #delivering = false;
  #outgoing: { chunk: Buffer; written: () => void }[] = [];
  #sending = false;
  #ending = false;
  #serverClosed = false;
  #kernelClosed = false;

  constructor(clock: Clock, random: SeededRandom, process: SimProcess) {
    this.#clock = clock;
    this.#random = random;
    this.#process = process;
    process.onDeath(() => this.#serverGone());
  }

  get open(): boolean {
    return !this.#serverClosed && !this.#kernelClosed;
  }

  setKernel(kernel: KernelEnd): void {
    this.#kernel = kernel;
  }

  /** The kernel sends. */
  send(bytes: Buffer): void {
    if (!this.open) return;
    this.#incoming.push(bytes);
    this.#deliverLater();
  }

  /** The kernel closes its end; what it sent before still arrives. */
  closeFromKernel(): void {
    if (this.#kernelClosed) return;
    this.#kernelClosed = true;
    this.#incomingEnded = true;
    this.#deliverLater();
  }

  setReceiver(receiver: Receiver): void {
    this.#receiver = receiver;
  }

  resume(): void {
    this.#paused = false;
    this.#deliverLater();
  }

  pause(): void {
    this.#paused = true;
  }

  /** Everything waits, so that the process can die between a reply and its way out. */
  writeNow(): number {
    return 0;
  }

  cork(): void {}

  uncork(): void {}

  write(chunk: Buffer, written: () => void): void {
    if (this.#serverClosed) {
      queueMicrotask(written);
      return;
    }
    this.#outgoing.push({ chunk, written });
    this.#sendLater();
  }

  end(): void {
    this.#ending = true;
    this.#sendLater();
  }

  destroy(): void {
    if (this.#serverClosed) return;
    this.#serverGone();
    this.#clock.after(0, () => this.#process.gate(() => this.#tellReceiver(undefined)));
  }

  /** The descriptor is closed before anybody served it. */
  closeFd(): void {
    this.#serverGone();
  }

  #deliverLater(): void {
    if (this.#delivering) return;
    this.#delivering = true;
    this.#clock.after(this.#random.fraction() * 0.2, () => this.#process.gate(() => this.#deliver()));
  }

  #deliver(): void {
    this.#delivering = false;
    while (!this.#paused && !this.#serverClosed && this.#incoming.length > 0) {
      const receiver = this.#receiver!;
      const bytes = this.#incoming[0];
      const place = receiver.receiveBuffer();
      // One receive in four is cut somewhere.
      const cut = this.#random.below(4) === 0 ? 1 + this.#random.below(bytes.length) : bytes.length;
      const length = bytes.copy(place, 0, 0, Math.min(cut, place.length));
      if (length === bytes.length) this.#incoming.shift();
      else this.#incoming[0] = bytes.subarray(length);
      receiver.received(length);
      if (cut < bytes.length) return this.#deliverLater();
    }
    if (this.#incomingEnded && this.#incoming.length === 0 && !this.#serverClosed && !this.#paused) {
      this.#incomingEnded = false;
      this.#receiver?.ended();
    } else if (this.#incomingEnded && this.#paused && !this.#serverClosed && this.#receiver !== undefined) {
      // A paused end hears of it by its next write at the latest, or when it reads on; one that nobody serves yet keeps
      // what came, and its end.
      this.#clock.after(1, () => this.#process.gate(() => this.#breakPaused()));
    }
  }

  #breakPaused(): void {
    if (!this.#incomingEnded || this.#serverClosed) return;
    if (!this.#paused) return this.#deliver();
    this.#serverGone();
    this.#tellReceiver(new Error("simulated: the kernel closed the connection"));
  }

  #sendLater(): void {
    if (this.#sending) return;
    this.#sending = true;
    this.#clock.after(this.#random.fraction() * 0.1, () => this.#process.gate(() => this.#send()));
  }

  #send(): void {
    this.#sending = false;
    if (this.#serverClosed) return;
    if (this.#kernelClosed && this.#outgoing.length > 0) {
      this.#serverGone();
      this.#tellReceiver(new Error("simulated: broken pipe"));
      return;
    }
    const taken = this.#outgoing.splice(0, 1 + this.#random.below(this.#outgoing.length + 1));
    for (const { chunk, written } of taken) {
      const copy = Buffer.from(chunk);
      this.#clock.after(0, () => this.#kernel?.received(copy));
      written();
    }
    if (this.#outgoing.length > 0) return this.#sendLater();
    if (!this.#ending || this.#serverClosed) return;
    this.#serverGone();
    this.#tellReceiver(undefined);
  }

  /** The server's end is gone: what was not written is lost, and the kernel notices. */
  #serverGone(): void {
    if (this.#serverClosed) return;
    this.#serverClosed = true;
    const unsent = this.#outgoing;
    this.#outgoing = [];
    this.#clock.after(0.2, () => this.#kernel?.closed());
    if (this.#process.dead) return;
    for (const { written } of unsent) queueMicrotask(written);
  }

  #tellReceiver(error: Error | undefined): void {
    const receiver = this.#receiver;
    this.#receiver = undefined;
    receiver?.closed(error);
  }
}
