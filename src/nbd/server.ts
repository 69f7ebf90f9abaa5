/**
 * The NBD server: listens, negotiates, serves each client by a Transmission. Standalone, without the kernel.
 *
 * Bounds: connections in all, handshakes at a time, seconds a handshake may take, memory a connection and in all (transmission.ts, slab-pool.ts). A client that breaks
 * the protocol loses its own connection and nobody else's. A unix socket is for its owner alone (0600, in a 0700
 * directory where the server makes one); TCP is served by TLS with client certificates (tls.ts), without only where
 * whoever listens says that this is wanted.
 */
import { chmod, mkdir, rm } from "node:fs/promises";
import type { Socket } from "node:net";
import { Server, connect } from "node:net";
import { dirname } from "node:path";
import type { Clock } from "../base/clock.ts";
import { OperationError, asOperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Connection } from "./connection.ts";
import { Deadline } from "./deadline.ts";
import type { ExportSource } from "./export-source.ts";
import type { HandshakeOptions, HandshakeResult } from "./handshake.ts";
import { performHandshake } from "./handshake.ts";
import { SlabPool } from "./slab-pool.ts";
import { connectionOfAccepted, connectionOfStream, releaseStream } from "./socket-connection.ts";
import { sparingLog } from "./sparing-log.ts";
import { Transmission } from "./transmission.ts";
import type { TransmissionEnd } from "./transmission.ts";
import { checkTlsFiles, startTlsOn } from "./tls.ts";
import type { TlsFiles } from "./tls.ts";

const HANDSHAKE_TIMEOUT_MS = 10_000;
const CONNECTION_LIMIT = 256;
const HANDSHAKE_LIMIT = 64;

export type ListenAddress =
  | { path: string }
  | {
      host: string;
      port: number;
      /** Every client must start TLS and show a certificate. */
      tls?: TlsFiles;
      /** Serve without TLS: anyone who reaches the port owns the data. */
      insecure?: boolean;
    };

/** A client being served; Transmission is one. */
export interface ServedClient {
  /** Resolves, never rejects, when the connection is gone and the device has settled all its requests. */
  readonly closed: Promise<TransmissionEnd>;
  /** Takes no new request; resolves when those taken are answered. */
  drain(): Promise<void>;
  /** Closes at once; resolves when the device has settled. */
  destroy(): Promise<void>;
}

export interface NbdServerOptions {
  source: ExportSource;
  /**
   * Serves a client that has chosen its export, and takes its connection over; for those who do that on other threads.
   * Default: a Transmission on this thread.
   */
  transmit?: (connection: Connection, negotiated: HandshakeResult) => ServedClient;
  clock: Clock;
  log: Log;
  /** Connections at one time, handshakes included; more are closed at once. Default 256. */
  connectionLimit?: number;
  /** Handshakes at one time: one more, and the oldest that waits for its client gives way. Default 64. */
  handshakeLimit?: number;
  /** Time a client has for its part of the handshake; opening its export does not count. Default 10 s. */
  handshakeTimeoutMs?: number;
  /** A connection's bound, see TransmissionOptions; all connections of this server together are bounded by SlabPool's. */
  memoryLimitBytes?: number;
}

export class NbdServer {
  readonly #source: ExportSource;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #connectionLimit: number;
  readonly #handshakeLimit: number;
  readonly #handshakeTimeoutMs: number;
  readonly #memoryLimitBytes: number | undefined;
  readonly #pool = new SlabPool();
  readonly #listeners: Server[] = [];
  /** In the order in which they began. */
  readonly #handshakes = new Map<Connection, Deadline>();
  /** For what any client can cause. */
  readonly #strangers: Log;
  readonly #transmit: (connection: Connection, negotiated: HandshakeResult) => ServedClient;
  readonly #serving = new Set<ServedClient>();
  readonly #clients = new Set<Promise<void>>();
  #closing = false;

  constructor(options: NbdServerOptions) {
    this.#source = options.source;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#strangers = sparingLog(options.log, options.clock);
    this.#handshakeLimit = options.handshakeLimit ?? HANDSHAKE_LIMIT;
    this.#connectionLimit = options.connectionLimit ?? CONNECTION_LIMIT;
    this.#handshakeTimeoutMs = options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS;
    this.#memoryLimitBytes = options.memoryLimitBytes;
    this.#transmit = options.transmit ?? ((connection, negotiated) => this.#transmitHere(connection, negotiated));
  }

  /** Clients connected now, those in the handshake included. */
  get connectionCount(): number {
    return this.#clients.size;
  }

  /** The transmissions that run on this thread now, for their counters. */
  transmissions(): readonly Transmission[] {
    return [...this.#serving].filter((client) => client instanceof Transmission);
  }

  /**
   * Starts to accept; may be called for several addresses. Answers the TCP port, 0 for a unix socket. A socket file that
   * nobody listens on any more is replaced. "in-use" where somebody does; "invalid" for TCP with neither `tls` nor
   * `insecure`, and where the files of `tls` do not serve.
   */
  async listen(address: ListenAddress): Promise<number> {
    const tls = "host" in address ? address.tls : undefined;
    if ("host" in address && tls === undefined && address.insecure !== true) {
      throw new OperationError(
        "invalid",
        "tcp needs the files of tls: give them, use a unix socket, or ask for insecure",
        {
          context: { host: address.host, port: address.port },
        },
      );
    }
    if (tls !== undefined) await checkTlsFiles(tls);
    if ("path" in address) await prepareSocketPath(address.path);
    const listener = new Server({ pauseOnConnect: true, allowHalfOpen: true, noDelay: true }, (socket) =>
      this.#accept(socket, tls),
    );
    await bind(listener, address);
    this.#listeners.push(listener);
    if ("path" in address) {
      await chmod(address.path, 0o600);
      return 0;
    }
    const bound = listener.address();
    return bound !== null && typeof bound === "object" ? bound.port : 0;
  }

  /**
   * Accepts nobody else, takes no new request, answers what runs, then closes every connection; after `graceMs` without
   * waiting for clients that do not read. Resolves when every device has settled and every export is released.
   */
  async close(graceMs = 5_000): Promise<void> {
    this.#closing = true;
    const listenersClosed = this.#listeners.map((listener) => new Promise((resolve) => listener.close(resolve)));
    for (const connection of this.#handshakes.keys()) connection.destroy();
    const timer = this.#clock.after(graceMs, () => {
      for (const transmission of this.#serving) void transmission.destroy();
    });
    await Promise.all([...this.#serving].map((transmission) => transmission.drain()));
    timer.cancel();
    await Promise.all([...this.#serving].map((transmission) => transmission.destroy()));
    await Promise.all(this.#clients);
    await Promise.all(listenersClosed);
  }

  #accept(socket: Socket, tls: TlsFiles | undefined): void {
    if (this.#closing || this.#clients.size >= this.#connectionLimit) {
      if (!this.#closing) this.#strangers.warn("connection refused: too many", { connections: this.#clients.size });
      socket.on("error", () => {});
      socket.destroy();
      return;
    }
    const served = tls === undefined ? this.#serve(connectionOfAccepted(socket)) : this.#serveSecretly(socket, tls);
    const client = served.finally(() => this.#clients.delete(client));
    this.#clients.add(client);
  }

  #serveSecretly(socket: Socket, tls: TlsFiles): Promise<void> {
    return this.#serve(connectionOfStream(socket), async (connection) => {
      releaseStream(connection);
      return connectionOfStream(await startTlsOn(socket, tls));
    });
  }

  async #serve(connection: Connection, startTls?: HandshakeOptions["startTls"]): Promise<void> {
    const negotiated = await this.#negotiate(connection, startTls);
    if (negotiated === undefined) return;
    const transmission = this.#transmit(negotiated.connection, negotiated);
    this.#serving.add(transmission);
    if (this.#closing) void transmission.destroy();
    const end = await transmission.closed;
    this.#serving.delete(transmission);
    const level = end.reason === "protocol" ? "warn" : "debug";
    this.#strangers[level]("client gone", { export: negotiated.name, reason: end.reason, detail: end.detail });
    await negotiated.handle.release();
  }

  #transmitHere(connection: Connection, { handle, name, leftover }: HandshakeResult): Transmission {
    return new Transmission(connection, handle.device, {
      log: this.#log.child({ export: name }),
      leftover,
      pool: this.#pool,
      ...(this.#memoryLimitBytes === undefined ? {} : { memoryLimitBytes: this.#memoryLimitBytes }),
    });
  }

  /** So that connections which never say anything keep nobody out: an honest handshake takes milliseconds. */
  #makeWay(): void {
    if (this.#handshakes.size < this.#handshakeLimit) return;
    for (const [connection, deadline] of this.#handshakes) {
      if (!deadline.isRunning) continue;
      this.#strangers.warn("handshake refused", { reason: "too many at a time, and this one is the oldest" });
      this.#handshakes.delete(connection);
      connection.destroy();
      return;
    }
  }

  async #negotiate(
    connection: Connection,
    startTls: HandshakeOptions["startTls"],
  ): Promise<HandshakeResult | undefined> {
    const deadline = new Deadline(this.#clock, this.#handshakeTimeoutMs, () => {
      this.#strangers.warn("handshake refused", { reason: `not through after ${this.#handshakeTimeoutMs} ms` });
      connection.destroy();
    });
    this.#makeWay();
    this.#handshakes.set(connection, deadline);
    const source: ExportSource = {
      list: () => deadline.exempt(() => this.#source.list()),
      open: (name) => deadline.exempt(() => this.#source.open(name)),
    };
    try {
      return await performHandshake(connection, source, {
        log: this.#strangers,
        ...(startTls === undefined ? {} : { startTls }),
      });
    } finally {
      deadline.cancel();
      this.#handshakes.delete(connection);
    }
  }
}

function bind(listener: Server, address: ListenAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    listener.once("error", (error) => reject(asOperationError(error, "unavailable", "cannot listen")));
    const where = "path" in address ? { path: address.path } : { host: address.host, port: address.port };
    listener.listen({ ...where, backlog: 128 }, () => resolve());
  });
}

/** Makes the directory where it is missing and removes a socket nobody listens on. */
async function prepareSocketPath(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  if (await somebodyListens(path)) {
    throw new OperationError("in-use", "another server listens on this socket: stop it or choose another path", {
      context: { path },
    });
  }
  await rm(path, { force: true });
}

function somebodyListens(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", () => resolve(false));
  });
}
