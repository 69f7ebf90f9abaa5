/**
 * Connection over a Node socket. Three ways in:
 * - connectionOfFd: a connected stream socket given by number (a kernel socketpair's end, a duplicated client's);
 * - connectionOfAccepted: a socket out of net.Server (created with pauseOnConnect and allowHalfOpen);
 * - connectionOfStream: any other socket or duplex stream, by 'data' events; those that may have to be taken back
 *   (releaseStream) to put TLS around them, and those of TLS.
 *
 * The first two receive straight into the receiver's memory (`onread`), which libuv's 64 KiB receive buffers of 'data'
 * events cannot: measured 1.2 against 2.7 GB/s for 128 KiB writes. Node offers `onread` only when a socket is
 * made, so the accepted one's handle moves into a new socket; where that internal field is missing, 'data' serves.
 */
import { writeSync } from "node:fs";
import { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import type { Connection, Receiver } from "./connection.ts";

/** Where bytes land before a receiver's own memory is in place: once at the start and after a change of receiver. */
const BOOTSTRAP_BYTES = 4096;

/**
 * After this many bytes of Node's receives without a pause (what follows on each of them comes on top, see MORE_RECEIVES),
 * the other connections of the thread get their turn: libuv would go on reading
 * from one busy socket for 32 receives.
 */
const TURN_BYTES = 128 * 1024;
/** So many receives follow one of Node's at most before the others get their turn (decision 0113). */
const MORE_RECEIVES = 4;

/** What a socket has now: how many bytes came into `target`; 0 where its peer has ended, -1 where there are none, or an error. */
export type ReceiveNow = (descriptor: number, target: Uint8Array) => number;

class StreamConnection implements Connection {
  #receiver: Receiver | undefined;
  /** Who lent the memory that the socket receives into now. */
  #lender: Receiver | undefined;
  #stream: Duplex | undefined;
  /** Of the socket whose bytes come into the receiver's memory, as long as the stream is not destroyed; else -1. */
  #descriptor = -1;
  #failure: Error | undefined;
  #turnBytes = 0;
  #paused = true;
  readonly #nextTurn = (): void => {
    if (!this.#paused) this.#stream?.resume();
  };
  readonly #listeners = {
    error: (error: Error): void => {
      this.#failure = error;
    },
    end: (): void => {
      this.#ended = true;
      this.#receiver?.ended();
    },
    close: (): void => {
      this.#closed = true;
      this.#receiver?.closed(this.#failure);
    },
    data: (bytes: Buffer): void => this.deliver(bytes),
  };
  readonly #receiveNow: ReceiveNow | undefined;
  #ended = false;
  #ending = false;
  #closed = false;

  constructor(receiveNow?: ReceiveNow) {
    this.#receiveNow = receiveNow;
  }

  /** `byEvents`: bytes come by 'data' events, not into the receiver's memory. */
  setStream(stream: Duplex, byEvents: boolean): void {
    this.#stream = stream;
    this.#descriptor = byEvents ? -1 : (this.descriptor() ?? -1);
    const { data, ...others } = this.#listeners;
    for (const [event, listener] of Object.entries(others)) stream.on(event, listener);
    if (byEvents) stream.on("data", data);
    stream.pause();
  }

  release(): Duplex | undefined {
    const stream = this.#stream;
    stream?.pause();
    this.#receiver = undefined;
    for (const event of ["data", "end"] as const) stream?.off(event, this.#listeners[event]);
    return stream;
  }

  descriptor(): number | undefined {
    // What stands in the socket below TLS is not what the connection carries.
    if (this.#stream instanceof TLSSocket) return undefined;
    const { _handle: handle } = (this.#stream ?? {}) as { _handle?: { fd?: number } | null };
    return handle?.fd !== undefined && handle.fd >= 0 ? handle.fd : undefined;
  }

  /** The `buffer` function of `onread`: the memory of the next receive. */
  nextBuffer(): Buffer {
    this.#lender = this.#receiver;
    return this.#receiver?.receiveBuffer() ?? Buffer.allocUnsafeSlow(BOOTSTRAP_BYTES);
  }

  /** The `callback` function of `onread`: false stops receiving. */
  arrived(length: number, buffer: Buffer): boolean {
    this.#turnBytes = length === buffer.length ? this.#turnBytes + length : 0;
    const receiver = this.#receiver;
    if (receiver !== undefined && this.#lender === receiver) {
      receiver.received(length);
      this.#receiveMore(receiver);
    } else this.deliver(buffer.subarray(0, length));
    if (this.#turnBytes < TURN_BYTES) return true;
    this.#turnBytes = 0;
    setImmediate(this.#nextTurn);
    return false;
  }

  /**
   * What has come while the receiver worked, past Node's stream, whose way through the event loop is 5 % of a random read.
   * What is no data (an end, an error) is left to the stream.
   */
  #receiveMore(receiver: Receiver): void {
    const receiveNow = this.#receiveNow;
    if (receiveNow === undefined) return;
    for (let left = MORE_RECEIVES; left > 0; left -= 1) {
      // The number of a destroyed stream may be another file's by now.
      if (this.#paused || receiver !== this.#receiver || this.#stream?.destroyed !== false || this.#ending) return;
      const length = receiveNow(this.#descriptor, receiver.receiveBuffer());
      if (length <= 0) return;
      receiver.received(length);
    }
  }

  /** Hands over bytes that stand elsewhere, by copying. */
  deliver(bytes: Buffer): void {
    let position = 0;
    while (position < bytes.length) {
      const receiver = this.#receiver;
      if (receiver === undefined) return;
      const copied = bytes.copy(receiver.receiveBuffer(), 0, position);
      position += copied;
      receiver.received(copied);
    }
  }

  setReceiver(receiver: Receiver): void {
    this.#receiver = receiver;
    if (this.#closed) queueMicrotask(() => receiver.closed(this.#failure));
    else if (this.#ended) queueMicrotask(() => receiver.ended());
  }

  resume(): void {
    this.#paused = false;
    this.#stream?.resume();
  }

  pause(): void {
    this.#paused = true;
    this.#stream?.pause();
  }

  cork(): void {
    this.#stream?.cork();
  }

  uncork(): void {
    this.#stream?.uncork();
  }

  /** By one write(2): what Node's stream does around it is 4 to 15 % of a random read (decision 0110). */
  writeNow(chunk: Buffer): number {
    const stream = this.#stream;
    const descriptor = this.#descriptor;
    // The number of a destroyed stream may be another file's by now.
    if (descriptor < 0 || stream === undefined || stream.destroyed || this.#ending) return 0;
    if (stream.writableLength > 0) return 0;
    try {
      return writeSync(descriptor, chunk);
    } catch {
      return 0;
    }
  }

  write(chunk: Buffer, written: () => void): void {
    if (this.#stream === undefined || this.#stream.destroyed || this.#stream.writableEnded) queueMicrotask(written);
    else this.#stream.write(chunk, written);
  }

  end(): void {
    const stream = this.#stream;
    if (stream === undefined || stream.destroyed || this.#ending) return;
    this.#ending = true;
    stream.end(() => stream.destroy());
  }

  destroy(): void {
    this.#stream?.destroy();
  }
}

/**
 * The descriptor behind a paused connection, to be duplicated for another thread; the connection still owns it and must
 * be destroyed afterwards. Undefined where the socket is gone, and where it carries TLS.
 */
export function descriptorOf(connection: Connection): number | undefined {
  return connection instanceof StreamConnection ? connection.descriptor() : undefined;
}

/** The connection takes the descriptor over and closes it. Node has no `receiveNow`: who has a binding brings it. */
export function connectionOfFd(fd: number, receiveNow?: ReceiveNow): Connection {
  const connection = new StreamConnection(receiveNow);
  connection.setStream(
    new Socket({ fd, readable: true, writable: true, allowHalfOpen: true, onread: into(connection) }),
    false,
  );
  return connection;
}

/** The connection takes `accepted` over: it must not be used any more. */
export function connectionOfAccepted(accepted: Socket): Connection {
  const { _handle: handle } = accepted as unknown as { _handle?: object | null };
  if (handle === undefined || handle === null) return connectionOfStream(accepted);
  const connection = new StreamConnection();
  const options = { handle, allowHalfOpen: true, onread: into(connection) };
  connection.setStream(new Socket(options as unknown as ConstructorParameters<typeof Socket>[0]), false);
  Object.assign(accepted, { _handle: null });
  accepted.destroy();
  return connection;
}

export function connectionOfStream(stream: Duplex): Connection {
  const connection = new StreamConnection();
  connection.setStream(stream, true);
  return connection;
}

/**
 * Takes the stream of connectionOfStream back: it is paused, and what it receives from now on is for whoever has it.
 * Destroying the connection still destroys it.
 */
export function releaseStream(connection: Connection): Duplex | undefined {
  return connection instanceof StreamConnection ? connection.release() : undefined;
}

function into(connection: StreamConnection) {
  return {
    buffer: () => connection.nextBuffer(),
    callback: (length: number, buffer: Uint8Array) => connection.arrived(length, buffer as Buffer),
  };
}
