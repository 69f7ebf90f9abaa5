/**
 * A Connection in memory for tests: bytes are fed in by hand, in pieces of any size, and what is sent is collected.
 * `nowBytes` of a piece are taken at once, where nothing waits.
 * `reading` false stands for a client that does not read: nothing is taken until it is true again and take() is called.
 */
import type { Connection, Receiver } from "../../src/nbd/connection.ts";

export class MemoryConnection implements Connection {
  /** Calls of write, and how many system calls they would have been. */
  writes = 0;
  paused = true;
  ended = false;
  destroyed = false;
  reading = true;
  nowBytes = Infinity;
  #receiver: Receiver | undefined;
  #sent: Buffer[] = [];
  #waiting: Buffer[] = [];
  #untaken: { chunk: Buffer; written: () => void }[] = [];
  #closeSignalled = false;

  setReceiver(receiver: Receiver): void {
    this.#receiver = receiver;
  }

  /** What the peer sends; delivered at once unless paused. */
  feed(bytes: Buffer): void {
    this.#waiting.push(bytes);
    this.#deliver();
  }

  /** Everything the peer has received. */
  get sent(): Buffer {
    if (this.#sent.length > 1) this.#sent = [Buffer.concat(this.#sent)];
    return this.#sent[0] ?? Buffer.alloc(0);
  }

  feedEnd(): void {
    this.#receiver?.ended();
  }

  /** Bytes fed and not yet received. */
  get unreceivedBytes(): number {
    return this.#waiting.reduce((sum, bytes) => sum + bytes.length, 0);
  }

  resume(): void {
    this.paused = false;
    queueMicrotask(() => this.#deliver());
  }

  pause(): void {
    this.paused = true;
  }

  writeNow(chunk: Buffer): number {
    if (!this.reading || this.destroyed || this.#untaken.length > 0) return 0;
    const taken = Buffer.from(chunk.subarray(0, this.nowBytes));
    if (taken.length === 0) return 0;
    this.writes += 1;
    this.#sent.push(taken);
    return taken.length;
  }

  cork(): void {}

  uncork(): void {}

  write(chunk: Buffer, written: () => void): void {
    this.writes += 1;
    this.#untaken.push({ chunk, written });
    if (this.reading) queueMicrotask(() => this.take());
  }

  /** The kernel takes everything written so far. */
  take(): void {
    const taken = this.#untaken.splice(0);
    if (!this.destroyed) this.#sent.push(...taken.map(({ chunk }) => Buffer.from(chunk)));
    for (const { written } of taken) written();
  }

  end(): void {
    this.ended = true;
    queueMicrotask(() => this.close());
  }

  destroy(): void {
    this.destroyed = true;
    queueMicrotask(() => this.close());
  }

  /** The socket is gone. */
  close(error?: Error): void {
    if (this.#closeSignalled) return;
    this.#closeSignalled = true;
    this.take();
    this.#receiver?.closed(error);
  }

  #deliver(): void {
    while (!this.paused && !this.destroyed && this.#waiting.length > 0) {
      const place = this.#receiver?.receiveBuffer();
      if (place === undefined) return;
      const length = this.#waiting[0].copy(place);
      this.#waiting[0] = this.#waiting[0].subarray(length);
      if (this.#waiting[0].length === 0) this.#waiting.shift();
      this.#receiver?.received(length);
    }
  }
}

/** Lets everything that waits for nothing but its turn happen. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 5; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}
