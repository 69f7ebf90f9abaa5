/**
 * Hands a client over to its volume's thread once the handshake is done: the socket's descriptor is duplicated for that
 * thread, and this thread's own end is closed without a word to the client.
 * What TLS has made of a socket cannot leave this thread: it stays, and the volume's thread gets one end of a socketpair
 * whose other end is coupled to it. So clients of TCP cost this thread their encryption; others, nothing.
 */
import { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { describe } from "../base/errors.ts";
import type { VolumeExport } from "../attachment/exports.ts";
import type { ServedConnection } from "../attachment/volume-host.ts";
import type { Connection } from "../nbd/connection.ts";
import type { HandshakeResult } from "../nbd/handshake.ts";
import type { Libc } from "../nbd/kernel/libc.ts";
import { descriptorOf, releaseStream } from "../nbd/socket-connection.ts";
import type { ServedClient } from "../nbd/server.ts";
import type { TransmissionEnd } from "../nbd/transmission.ts";

/** For NbdServer's `transmit`, with VolumeExports as its source. */
export function transmitElsewhere(libc: Libc): (connection: Connection, negotiated: HandshakeResult) => ServedClient {
  return (connection, { handle, leftover }) => {
    const { volume } = handle as VolumeExport;
    const taken = takeDescriptor(connection, libc);
    if (taken === undefined) return goneClient;
    return new RemoteClient(volume.serve({ fd: taken.fd, received: leftover, kernel: false }), taken.stream);
  };
}

interface TakenDescriptor {
  /** Carries in clear what the connection carried; for another thread. */
  fd: number;
  /** What stays on this thread between client and descriptor. */
  stream: Duplex | undefined;
}

/** Undefined where the connection is gone. */
function takeDescriptor(connection: Connection, libc: Libc): TakenDescriptor | undefined {
  const descriptor = descriptorOf(connection);
  if (descriptor !== undefined) {
    const fd = libc.duplicate(descriptor);
    connection.destroy();
    return { fd, stream: undefined };
  }
  const stream = releaseStream(connection);
  if (stream === undefined || stream.destroyed) return undefined;
  const [ours, theirs] = libc.socketPair();
  couple(stream, new Socket({ fd: ours, readable: true, writable: true, allowHalfOpen: true }));
  return { fd: theirs, stream };
}

/** Each end gets what the other one receives, no faster than it takes it. When the thread's end closes, so does the client's. */
function couple(client: Duplex, thread: Socket): void {
  thread.on("error", () => {});
  client.on("close", () => thread.destroy());
  client.pipe(thread);
  thread.pipe(client, { end: false });
  thread.on("end", () => client.end(() => client.destroy()));
  thread.on("close", () => {
    if (!client.writableEnded) client.destroy();
  });
}

const gone: TransmissionEnd = { reason: "end", detail: "before its first request" };
const goneClient: ServedClient = { closed: Promise.resolve(gone), drain: async () => {}, destroy: async () => {} };

class RemoteClient implements ServedClient {
  readonly closed: Promise<TransmissionEnd>;
  /** Undefined where the volume's thread would not serve it. */
  readonly #served: Promise<ServedConnection | undefined>;
  readonly #stream: Duplex | undefined;

  constructor(served: Promise<ServedConnection>, stream: Duplex | undefined) {
    const refused = served.then(
      () => undefined,
      (error: unknown): TransmissionEnd => ({ reason: "destroyed", detail: describe(error) }),
    );
    this.#stream = stream;
    this.#served = served.catch(() => undefined);
    const streamClosed = stream === undefined ? undefined : closing(stream);
    this.closed = this.#served.then(async (connection): Promise<TransmissionEnd> => {
      if (connection === undefined) {
        stream?.destroy();
        return (await refused) ?? gone;
      }
      const reason = await connection.closed;
      await streamClosed;
      return { reason: reason.startsWith("protocol") ? "protocol" : "end", detail: reason };
    });
  }

  async drain(): Promise<void> {
    await (await this.#served)?.drain();
  }

  async destroy(): Promise<void> {
    this.#stream?.destroy();
    await (await this.#served)?.destroy();
  }
}

function closing(stream: Duplex): Promise<void> {
  return new Promise((resolve) => {
    if (stream.closed) resolve();
    else stream.once("close", () => resolve());
  });
}
