/**
 * Hands a client over to its volume's thread once the handshake is done: the socket's descriptor is duplicated for that
 * thread, and this thread's own end is closed without a word to the client.
 */
import { describe } from "../base/errors.ts";
import type { VolumeExport } from "../attachment/exports.ts";
import type { ServedConnection } from "../attachment/volume-host.ts";
import type { Connection } from "../nbd/connection.ts";
import type { HandshakeResult } from "../nbd/handshake.ts";
import type { Libc } from "../nbd/kernel/libc.ts";
import { descriptorOf } from "../nbd/socket-connection.ts";
import type { ServedClient } from "../nbd/server.ts";
import type { TransmissionEnd } from "../nbd/transmission.ts";

/** For NbdServer's `transmit`, with VolumeExports as its source. */
export function transmitElsewhere(libc: Libc): (connection: Connection, negotiated: HandshakeResult) => ServedClient {
  return (connection, { handle, leftover }) => {
    const { volume } = handle as VolumeExport;
    const descriptor = descriptorOf(connection);
    const fd = descriptor === undefined ? undefined : libc.duplicate(descriptor);
    connection.destroy();
    if (fd === undefined) return goneClient;
    return new RemoteClient(volume.serve({ fd, received: leftover, kernel: false }));
  };
}

const gone: TransmissionEnd = { reason: "end", detail: "before its first request" };
const goneClient: ServedClient = { closed: Promise.resolve(gone), drain: async () => {}, destroy: async () => {} };

class RemoteClient implements ServedClient {
  readonly closed: Promise<TransmissionEnd>;
  /** Undefined where the volume's thread would not serve it. */
  readonly #served: Promise<ServedConnection | undefined>;

  constructor(served: Promise<ServedConnection>) {
    const refused = served.then(
      () => undefined,
      (error: unknown): TransmissionEnd => ({ reason: "destroyed", detail: describe(error) }),
    );
    this.#served = served.catch(() => undefined);
    this.closed = this.#served.then(async (connection): Promise<TransmissionEnd> => {
      if (connection === undefined) return (await refused) ?? gone;
      const reason = await connection.closed;
      return { reason: reason.startsWith("protocol") ? "protocol" : "end", detail: reason };
    });
  }

  async drain(): Promise<void> {
    await (await this.#served)?.drain();
  }

  async destroy(): Promise<void> {
    await (await this.#served)?.destroy();
  }
}
