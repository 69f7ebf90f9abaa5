/**
 * What handshake and transmission need of a connected stream socket. socket-connection.ts implements it over Node's
 * sockets; the simulator and the tests bring one in memory.
 *
 * Bytes are received into the receiver's own memory: the connection asks for a place before each receive, so that the
 * payload of a large write can arrive where it will be used. Every callback passed to write is called exactly once,
 * also when the connection dies, and the chunk belongs to the connection until then.
 */
export interface Receiver {
  /** The place for the next bytes, at least one byte long; it stays the connection's until the next call. */
  receiveBuffer(): Buffer;
  /** `length` bytes stand at the start of the place last given. Not called while paused. */
  received(length: number): void;
  /** The peer sends no more; it may still read. */
  ended(): void;
  /** The connection is gone, `error` when it broke. Called once, last. */
  closed(error: Error | undefined): void;
}

export interface Connection {
  /** Makes `receiver` the one that is told; the former one hears no more. Does not resume. */
  setReceiver(receiver: Receiver): void;
  /** Starts or goes on receiving. A new connection is paused. */
  resume(): void;
  pause(): void;
  /**
   * Sends what the kernel takes of `chunk` at once and says how many bytes of its start those were: 0 where it takes none,
   * and where anything written before still waits. Never fails: the write of the rest meets what is wrong.
   */
  writeNow(chunk: Buffer): number;
  /** Between cork and uncork, writes are gathered into one system call. */
  cork(): void;
  uncork(): void;
  write(chunk: Buffer, written: () => void): void;
  /** Sends what was written, then ends and closes. */
  end(): void;
  /** Closes at once; what was not sent is lost. */
  destroy(): void;
}
