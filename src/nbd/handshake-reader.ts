/**
 * Exact reads from a connection during the handshake. Consumes what is asked for and nothing more: what is left goes
 * to the transmission. Holds at most BUFFER_LIMIT_BYTES; beyond that, it stops receiving until somebody reads.
 */
import type { Connection } from "./connection.ts";

const BUFFER_LIMIT_BYTES = 64 * 1024;
const RECEIVE_BYTES = 8 * 1024;

/** The peer went away, or stopped sending, before the handshake was through. */
export class HandshakeEnded extends Error {
  override readonly name = "HandshakeEnded";
}

export class HandshakeReader {
  readonly #connection: Connection;
  readonly #place = Buffer.allocUnsafeSlow(RECEIVE_BYTES);
  #chunks: Buffer[] = [];
  #availableBytes = 0;
  #over: HandshakeEnded | undefined;
  #wake: (() => void) | undefined;

  constructor(connection: Connection) {
    this.#connection = connection;
    connection.setReceiver({
      receiveBuffer: () => this.#place,
      received: (length) => this.#received(length),
      ended: () => this.#stop("the client closed the connection"),
      closed: (error) => this.#stop(error === undefined ? "the connection was closed" : error.message),
    });
    connection.resume();
  }

  /** Exactly `length` bytes; at most BUFFER_LIMIT_BYTES. Throws HandshakeEnded. */
  async read(length: number): Promise<Buffer> {
    while (this.#availableBytes < length) await this.#more();
    const all = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
    this.#keep(all.subarray(length));
    return all.subarray(0, length);
  }

  /** Throws `length` bytes away, however many, without holding them. */
  async skip(length: number): Promise<void> {
    let left = length;
    for (;;) {
      const taken = Math.min(left, this.#availableBytes, BUFFER_LIMIT_BYTES);
      await this.read(taken);
      left -= taken;
      if (left === 0) return;
      if (this.#availableBytes === 0) await this.#more();
    }
  }

  /** Stops receiving and answers what was received and not read. The reader must not be used any more. */
  takeLeftover(): Buffer {
    this.#connection.pause();
    const leftover = Buffer.concat(this.#chunks);
    this.#keep(leftover.subarray(leftover.length));
    return leftover;
  }

  #received(length: number): void {
    this.#chunks.push(Buffer.from(this.#place.subarray(0, length)));
    this.#availableBytes += length;
    if (this.#availableBytes >= BUFFER_LIMIT_BYTES) this.#connection.pause();
    this.#wake?.();
  }

  #keep(rest: Buffer): void {
    this.#chunks = rest.length > 0 ? [rest] : [];
    this.#availableBytes = rest.length;
  }

  #stop(message: string): void {
    this.#over ??= new HandshakeEnded(message);
    this.#wake?.();
  }

  async #more(): Promise<void> {
    if (this.#over !== undefined) throw this.#over;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    this.#connection.resume();
    await promise;
    this.#wake = undefined;
  }
}
