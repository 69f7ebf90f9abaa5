/**
 * A small NBD client over a unix socket: one connection, any number of requests in flight, simple replies. Errors of
 * the server are answered as their number; a connection that ends answers what is in flight with "gone".
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { clientFlags, infoData, option, request } from "../nbd/frames.ts";

const FIXED_NEWSTYLE_NO_ZEROES = 3;
const GREETING_BYTES = 18;
const OPTION_REPLY_BYTES = 20;
const REPLY_BYTES = 16;
const OPTION_GO = 7;
const REPLY_ACK = 1;
const ERROR_BIT = 0x80000000;
const COMMAND = { read: 0, write: 1, flush: 3 } as const;

/** 0 is success, another number the server's error, "gone" a connection that ended before the answer. */
export type Answer = number | "gone";

interface Pending {
  readBytes: number;
  resolve: (answer: { answer: Answer; payload: Buffer }) => void;
}

export class NbdClient {
  readonly #socket: Socket;
  readonly #pending = new Map<bigint, Pending>();
  #received = Buffer.alloc(0);
  #waiter: (() => void) | undefined;
  #isTransmitting = false;
  #isGone = false;
  #cookie = 0n;

  /** Connects and opens the export; rejects where it is refused. */
  static async open(socketPath: string, exportName: string): Promise<NbdClient> {
    const socket = connect(socketPath);
    await once(socket, "connect");
    const client = new NbdClient(socket);
    try {
      await client.#negotiate(exportName);
    } catch (error) {
      socket.destroy();
      throw error;
    }
    return client;
  }

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (bytes: Buffer) => {
      this.#received = Buffer.concat([this.#received, bytes]);
      if (this.#isTransmitting) this.#takeReplies();
      this.#waiter?.();
    });
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#isGone = true;
      this.#waiter?.();
      for (const { resolve } of this.#pending.values()) resolve({ answer: "gone", payload: Buffer.alloc(0) });
      this.#pending.clear();
    });
  }

  async write(offset: number, payload: Buffer): Promise<Answer> {
    const { answer } = await this.#send(COMMAND.write, offset, payload.length, payload);
    return answer;
  }

  async flush(): Promise<Answer> {
    const { answer } = await this.#send(COMMAND.flush, 0, 0);
    return answer;
  }

  async read(offset: number, length: number): Promise<{ answer: Answer; payload: Buffer }> {
    return await this.#send(COMMAND.read, offset, length);
  }

  /** Takes no answers any more. */
  pause(): void {
    this.#socket.pause();
  }

  close(): void {
    this.#socket.destroy();
  }

  async #negotiate(exportName: string): Promise<void> {
    await this.#take(GREETING_BYTES);
    this.#socket.write(clientFlags(FIXED_NEWSTYLE_NO_ZEROES));
    this.#socket.write(option(OPTION_GO, infoData(exportName)));
    for (;;) {
      const head = await this.#take(OPTION_REPLY_BYTES);
      const type = head.readUInt32BE(12);
      const data = await this.#take(head.readUInt32BE(16));
      if (type === REPLY_ACK) break;
      if (type >= ERROR_BIT) throw new Error(`export ${exportName} is refused: ${data.toString()}`);
    }
    this.#isTransmitting = true;
    this.#takeReplies();
  }

  #send(type: number, offset: number, length: number, payload?: Buffer): Promise<{ answer: Answer; payload: Buffer }> {
    if (this.#isGone) return Promise.resolve({ answer: "gone", payload: Buffer.alloc(0) });
    this.#cookie += 1n;
    const cookie = this.#cookie;
    return new Promise((resolve) => {
      this.#pending.set(cookie, { readBytes: type === COMMAND.read ? length : 0, resolve });
      const fields = { type, cookie, offset: BigInt(offset), length };
      this.#socket.write(request(payload === undefined ? fields : { ...fields, payload }));
    });
  }

  #takeReplies(): void {
    while (this.#received.length >= REPLY_BYTES) {
      const answer = this.#received.readUInt32BE(4);
      const cookie = this.#received.readBigUInt64BE(8);
      const pending = this.#pending.get(cookie);
      if (pending === undefined) throw new Error("an answer to no request");
      const end = REPLY_BYTES + (answer === 0 ? pending.readBytes : 0);
      if (this.#received.length < end) return;
      const payload = this.#received.subarray(REPLY_BYTES, end);
      this.#received = this.#received.subarray(end);
      this.#pending.delete(cookie);
      pending.resolve({ answer, payload });
    }
  }

  async #take(length: number): Promise<Buffer> {
    while (this.#received.length < length) {
      if (this.#isGone) throw new Error("the server closed the connection during the handshake");
      await new Promise<void>((resolve) => (this.#waiter = resolve));
    }
    const taken = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    return taken;
  }
}
