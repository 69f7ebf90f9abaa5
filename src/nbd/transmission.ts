/**
 * The transmission phase of one NBD connection: requests in, a BlockDevice, simple replies out. Serves a client after
 * its handshake, and the kernel's end of a socketpair without one.
 *
 * Requests run as they arrive, many at a time, and are answered as they complete. A request the device completes at
 * once costs no promise; all replies of one receive event leave together, after the device has committed the batch. Order is nobody's promise but the device's:
 * a flush covers what had completed before it, on whatever connection.
 *
 * | state      | requests                                    | leaves it                                          |
 * |------------|---------------------------------------------|----------------------------------------------------|
 * | serving    | run                                         | drain → refusing or stopped; DISC, end → finishing |
 * | refusing   | answered ESHUTDOWN                          | destroy, DISC, end → finishing                     |
 * | stopped    | not read any more                           | destroy                                            |
 * | finishing  | not read; those in flight are answered      | all sent → connection ended → closed               |
 * | broken     | not read, nothing sent                      | device has settled → closed                        |
 * | closed     |                                             |                                                    |
 *
 * Invariant: after drain or destroy resolved, nothing of this connection can still take effect on the device.
 * It must never answer a write before the device completed it, and never touch memory lent to device or socket.
 */
import { OperationError, describe } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { nullLog } from "../base/log.ts";
import type { BlockDevice, MaybePromise } from "../block/device.ts";
import type { Connection } from "./connection.ts";
import { NBD_ESHUTDOWN, REQUEST_ERRNO } from "./errno.ts";
import {
  COMMAND_DISCONNECT,
  COMMAND_FLAG_FUA,
  COMMAND_FLUSH,
  COMMAND_READ,
  COMMAND_TRIM,
  COMMAND_WRITE,
  COMMAND_WRITE_ZEROES,
  PAYLOAD_LIMIT_BYTES,
  REQUEST_MAGIC,
  REQUEST_SIZE,
  RequestHeader,
  SIMPLE_REPLY_SIZE,
  encodeSimpleReply,
  setSimpleReplyError,
} from "./protocol.ts";
import { ReceiveWindow } from "./receive-window.ts";
import { ReplyQueue } from "./reply-queue.ts";
import { PendingRequest, validateRequest } from "./request.ts";
import type { Slab } from "./slab-pool.ts";
import { SlabAccount, SlabPool } from "./slab-pool.ts";

/** A write whose payload claims more than this is not drained: it is garbage or malice, and ends the connection. */
const PAYLOAD_HARD_LIMIT_BYTES = 4 * PAYLOAD_LIMIT_BYTES;
/** Replies are handed to the socket at this many bytes without waiting for the end of the receive event. */
const FLUSH_AT_BYTES = 256 * 1024;
/** With this many bytes of replies not yet taken by the kernel, no request is started: the client must read first. */
const QUEUED_REPLIES_LIMIT_BYTES = 2 * 1024 * 1024;

export interface TransmissionOptions {
  log?: Log;
  /** What drain does with requests that come later: "refuse" (ESHUTDOWN; the default) or "stop" reading (kernel). */
  onDrain?: "refuse" | "stop";
  /** Bytes received after the handshake, in order, before the connection's next ones. */
  leftover?: Buffer;
  /** Memory of requests and replies at which no further request is started. Default 64 MiB; one request may exceed it. */
  memoryLimitBytes?: number;
  /** Requests in the device at which no further one is started. Default 1024. */
  inFlightLimit?: number;
  /** Memory shared, and bounded together, by the connections of a thread. Default: one of its own. */
  pool?: SlabPool;
}

export interface TransmissionCounters {
  requests: number;
  failedRequests: number;
  readBytes: number;
  writtenBytes: number;
  /** Requests in the device now. */
  inFlight: number;
  /** Bytes of memory held for requests and replies now. */
  heldBytes: number;
}

export interface TransmissionEnd {
  /** "disconnect": the client said so; "end": it closed; "protocol": it spoke nonsense; "destroyed": we closed. */
  reason: "disconnect" | "end" | "protocol" | "socket" | "destroyed";
  /** For a log; empty where there is nothing to say. */
  detail: string;
}

type State = "serving" | "refusing" | "stopped" | "finishing" | "broken" | "closed";

export class Transmission {
  /** Resolves, never rejects, when the connection is gone and the device has settled all its requests. */
  readonly closed: Promise<TransmissionEnd>;
  readonly #connection: Connection;
  readonly #device: BlockDevice;
  readonly #log: Log;
  readonly #onDrain: "refuse" | "stop";
  readonly #memoryLimitBytes: number;
  readonly #inFlightLimit: number;
  readonly #account: SlabAccount;
  readonly #window: ReceiveWindow;
  readonly #replies: ReplyQueue;
  readonly #header = new RequestHeader();
  readonly #spare: PendingRequest[] = [];
  readonly #resolveClosed: (end: TransmissionEnd) => void;
  readonly #drainWaiters: (() => void)[] = [];
  readonly #proceedLater = (): void => this.#proceed();
  readonly #flushLater = (): void => this.#flushScheduled();
  #state: State = "serving";
  #end: TransmissionEnd | undefined;
  /** The socket is gone: no bytes come or go any more. */
  #disconnected = false;
  #paused = false;
  #processing = false;
  #flushIsScheduled = false;
  /** Length, as far as known, of the frame at the window's start. */
  #frameBytes = REQUEST_SIZE;
  /** Payload of a refused write still to be thrown away, and the answer it gets then. */
  #skipBytes = 0;
  #skipErrno = 0;
  #inFlight = 0;
  /** Where the replies stand to changes that the device has not committed yet. */
  readonly #uncommittedSlabs: Slab[] = [];
  readonly #uncommittedStarts: number[] = [];
  #requests = 0;
  #failedRequests = 0;
  #readBytes = 0;
  #writtenBytes = 0;

  /**
   * Serves `device` on `connection`, which it takes over, from the next turn on. The device is borrowed: it must stay
   * open until `closed` resolved. Its requests may have any alignment the device was advertised with; others are EINVAL.
   */
  constructor(connection: Connection, device: BlockDevice, options: TransmissionOptions = {}) {
    this.#connection = connection;
    this.#device = device;
    this.#log = options.log ?? nullLog;
    this.#onDrain = options.onDrain ?? "refuse";
    this.#memoryLimitBytes = options.memoryLimitBytes ?? 64 * 1024 * 1024;
    this.#inFlightLimit = options.inFlightLimit ?? 1024;
    this.#account = new SlabAccount(options.pool ?? new SlabPool());
    this.#window = new ReceiveWindow(this.#account);
    this.#replies = new ReplyQueue(this.#account, connection, () => this.#proceed());
    const { promise, resolve } = Promise.withResolvers<TransmissionEnd>();
    this.closed = promise;
    this.#resolveClosed = resolve;
    connection.setReceiver({
      receiveBuffer: () => this.#window.place(this.#frameBytes),
      received: (length) => {
        this.#window.received(length);
        this.#process();
      },
      ended: () =>
        this.#finish({ reason: "end", detail: this.#window.available > 0 ? "in the midst of a request" : "" }),
      closed: (error) => this.#socketClosed(error),
    });
    const leftover = options.leftover;
    queueMicrotask(() => this.#start(leftover));
  }

  counters(): TransmissionCounters {
    return {
      requests: this.#requests,
      failedRequests: this.#failedRequests,
      readBytes: this.#readBytes,
      writtenBytes: this.#writtenBytes,
      inFlight: this.#inFlight,
      heldBytes: this.#account.heldBytes,
    };
  }

  /**
   * Takes no new request (see onDrain) and resolves once every request taken before has been answered, or the
   * connection is closed. A client that does not read its replies can hold this up: bound it and call destroy.
   */
  drain(): Promise<void> {
    if (this.#state === "serving") {
      this.#state = this.#onDrain === "refuse" ? "refusing" : "stopped";
      if (this.#state === "stopped") this.#connection.pause();
    }
    return new Promise((resolve) => {
      this.#drainWaiters.push(resolve);
      this.#proceed();
    });
  }

  /** Closes the socket at once; resolves when the device has settled the requests it had. Idempotent. */
  async destroy(): Promise<void> {
    this.#break({ reason: "destroyed", detail: "" });
    await this.closed;
  }

  #start(leftover: Buffer | undefined): void {
    let position = 0;
    while (leftover !== undefined && position < leftover.length) {
      const copied = leftover.copy(this.#window.place(this.#frameBytes), 0, position);
      position += copied;
      this.#window.received(copied);
      this.#process();
    }
    if (this.#reading() && !this.#paused) this.#connection.resume();
  }

  #reading(): boolean {
    return this.#state === "serving" || this.#state === "refusing";
  }

  /** True while another request may be started; always for the only one of this connection, so that all make progress. */
  #hasRoom(): boolean {
    if (this.#inFlight === 0 && this.#replies.queuedBytes === 0) return true;
    return (
      this.#inFlight < this.#inFlightLimit &&
      this.#account.heldBytes < this.#memoryLimitBytes &&
      !this.#account.pool.full &&
      this.#replies.queuedBytes < QUEUED_REPLIES_LIMIT_BYTES
    );
  }

  /** Runs every whole request of the window as long as there is room. */
  #process(): void {
    if (this.#processing) return;
    this.#processing = true;
    this.#device.beginBatch?.();
    try {
      while (this.#reading() && this.#window.available >= Math.min(this.#frameBytes, REQUEST_SIZE)) {
        if (!this.#hasRoom()) {
          this.#pause();
          break;
        }
        if (!this.#step()) break;
        if (this.#replies.waitingBytes >= FLUSH_AT_BYTES) {
          this.#commit();
          this.#replies.flush();
          this.#device.beginBatch?.();
        }
      }
    } finally {
      this.#processing = false;
      this.#commit();
    }
    this.#replies.flush();
    // What stopped it may have left just now, without a callback.
    if (this.#paused && this.#hasRoom()) process.nextTick(this.#proceedLater);
    this.#settle();
  }

  /** Ends the device's batch; where that fails, so do the changes whose replies still stand here. */
  #commit(): void {
    try {
      this.#device.commitBatch?.();
    } catch (error) {
      const errno = this.#errnoOf(error);
      for (const [index, slab] of this.#uncommittedSlabs.entries()) {
        setSimpleReplyError(slab.view, this.#uncommittedStarts[index], errno);
      }
      this.#failedRequests += this.#uncommittedSlabs.length;
    }
    this.#uncommittedSlabs.length = 0;
    this.#uncommittedStarts.length = 0;
  }

  /** Consumes one request, or what there is of a payload to skip. False where more bytes are needed. */
  #step(): boolean {
    const window = this.#window;
    const available = window.available;
    if (this.#skipBytes > 0) return this.#skip(available);
    if (available < this.#frameBytes) return false;
    const header = this.#header;
    header.decode(window.slab.view, window.start);
    if (header.magic !== REQUEST_MAGIC) {
      this.#break({ reason: "protocol", detail: `bad request magic 0x${header.magic.toString(16)}` });
      return false;
    }
    const payloadBytes = header.type === COMMAND_WRITE ? header.lengthBytes : 0;
    if (payloadBytes > PAYLOAD_HARD_LIMIT_BYTES) {
      this.#break({ reason: "protocol", detail: `a write of ${payloadBytes} bytes` });
      return false;
    }
    const errno = this.#state === "refusing" ? NBD_ESHUTDOWN : validateRequest(header, this.#device);
    if (errno !== 0) this.#refuse(errno, payloadBytes);
    else if (available < REQUEST_SIZE + payloadBytes) {
      this.#frameBytes = REQUEST_SIZE + payloadBytes;
      return false;
    } else this.#run(payloadBytes);
    return true;
  }

  #skip(available: number): boolean {
    const skipped = Math.min(available, this.#skipBytes);
    this.#window.consume(skipped);
    this.#skipBytes -= skipped;
    if (this.#skipBytes > 0) return false;
    this.#frameBytes = REQUEST_SIZE;
    this.#reply(this.#skipErrno);
    return true;
  }

  /** Answers the request in the header with an error, after its payload has gone by. */
  #refuse(errno: number, payloadBytes: number): void {
    this.#requests += 1;
    this.#window.consume(REQUEST_SIZE);
    if (payloadBytes === 0) return this.#reply(errno);
    this.#skipBytes = payloadBytes;
    this.#skipErrno = errno;
    this.#frameBytes = 1;
  }

  /** Commits a reply without payload to the request in the header. */
  #reply(errno: number): void {
    const slab = this.#replies.reserve(SIMPLE_REPLY_SIZE);
    const start = this.#replies.reservedStart;
    if (errno !== 0) this.#failedRequests += 1;
    encodeSimpleReply(slab.view, start, errno, this.#header.cookieHigh, this.#header.cookieLow);
    this.#replies.commit(slab, start, SIMPLE_REPLY_SIZE);
  }

  /** Runs the valid request in the header, whose payload stands behind it in the window. */
  #run(payloadBytes: number): void {
    const header = this.#header;
    this.#requests += 1;
    this.#frameBytes = REQUEST_SIZE;
    const payloadStart = this.#window.start + REQUEST_SIZE;
    this.#window.consume(REQUEST_SIZE + payloadBytes);
    if (header.type === COMMAND_READ) return this.#read();
    if (header.type === COMMAND_DISCONNECT) return this.#finish({ reason: "disconnect", detail: "" });
    let result: MaybePromise<void>;
    try {
      result = this.#change(payloadStart, payloadBytes);
    } catch (error) {
      return this.#reply(this.#errnoOf(error));
    }
    if (result === undefined) {
      this.#reply(0);
      this.#uncommittedSlabs.push(this.#replies.reservedSlab);
      this.#uncommittedStarts.push(this.#replies.reservedStart);
      return;
    }
    let borrowed: Slab | undefined;
    if (payloadBytes > 0) {
      borrowed = this.#window.slab;
      borrowed.retain();
    }
    this.#wait(result, borrowed, 0, 0);
  }

  /** Every command but a read: what the device answers. */
  #change(payloadStart: number, payloadBytes: number): MaybePromise<void> {
    const header = this.#header;
    const fua = (header.flags & COMMAND_FLAG_FUA) !== 0;
    if (header.type === COMMAND_FLUSH) return this.#device.flush();
    if (header.lengthBytes === 0) return undefined;
    switch (header.type) {
      case COMMAND_WRITE: {
        this.#writtenBytes += payloadBytes;
        const source = this.#window.slab.buffer.subarray(payloadStart, payloadStart + payloadBytes);
        return this.#device.write(header.offset, source, fua);
      }
      case COMMAND_TRIM:
        return this.#device.trim(header.offset, header.lengthBytes, fua);
      case COMMAND_WRITE_ZEROES:
        return this.#device.writeZeroes(header.offset, header.lengthBytes, fua);
      default:
        throw new OperationError("invalid", "unknown command", { context: { type: header.type } });
    }
  }

  #read(): void {
    const { offset, lengthBytes, cookieHigh, cookieLow } = this.#header;
    if (lengthBytes === 0) return this.#reply(0);
    this.#readBytes += lengthBytes;
    const slab = this.#replies.reserve(SIMPLE_REPLY_SIZE + lengthBytes);
    const start = this.#replies.reservedStart;
    const payload = start + SIMPLE_REPLY_SIZE;
    let result: MaybePromise<void>;
    try {
      result = this.#device.read(offset, slab.buffer.subarray(payload, payload + lengthBytes));
    } catch (error) {
      slab.release();
      return this.#reply(this.#errnoOf(error));
    }
    if (result !== undefined) return this.#wait(result, slab, start, lengthBytes);
    encodeSimpleReply(slab.view, start, 0, cookieHigh, cookieLow);
    this.#replies.commit(slab, start, SIMPLE_REPLY_SIZE + lengthBytes);
  }

  /** Answers the request in the header when `result` settles; `slab` is what the device works on until then. */
  #wait(result: Promise<void>, slab: Slab | undefined, start: number, readBytes: number): void {
    this.#inFlight += 1;
    const pending = this.#spare.pop() ?? new PendingRequest(this.#settled);
    pending.cookieHigh = this.#header.cookieHigh;
    pending.cookieLow = this.#header.cookieLow;
    pending.slab = slab;
    pending.start = start;
    pending.readBytes = readBytes;
    void result.then(pending.done, pending.failed);
  }

  /** A request that was waited for has settled: with `error`, or else well. */
  readonly #settled = (pending: PendingRequest, error: unknown): void => {
    this.#inFlight -= 1;
    const { slab, start, readBytes } = pending;
    const errno = error === undefined ? 0 : this.#errnoOf(error);
    pending.slab = undefined;
    this.#spare.push(pending);
    if (this.#disconnected || this.#state === "broken") slab?.release();
    else if (readBytes > 0 && errno === 0) {
      encodeSimpleReply(slab!.view, start, 0, pending.cookieHigh, pending.cookieLow);
      this.#replies.commit(slab!, start, SIMPLE_REPLY_SIZE + readBytes);
    } else {
      slab?.release();
      this.#replyLate(pending, errno);
    }
    if (this.#flushIsScheduled) return;
    this.#flushIsScheduled = true;
    process.nextTick(this.#flushLater);
  };

  #replyLate(pending: PendingRequest, errno: number): void {
    const slab = this.#replies.reserve(SIMPLE_REPLY_SIZE);
    const start = this.#replies.reservedStart;
    if (errno !== 0) this.#failedRequests += 1;
    encodeSimpleReply(slab.view, start, errno, pending.cookieHigh, pending.cookieLow);
    this.#replies.commit(slab, start, SIMPLE_REPLY_SIZE);
  }

  /** Everything that completed in one turn leaves together. */
  #flushScheduled(): void {
    this.#flushIsScheduled = false;
    if (this.#state !== "broken" && this.#state !== "closed") this.#replies.flush();
    this.#proceed();
  }

  #errnoOf(error: unknown): number {
    if (!(error instanceof OperationError)) throw error;
    this.#log.warn("request failed", { error: describe(error), kind: error.kind });
    return REQUEST_ERRNO[error.kind];
  }

  #pause(): void {
    if (this.#account.pool.full) this.#account.pool.whenRoom(this.#proceedLater);
    if (this.#paused) return;
    this.#paused = true;
    this.#connection.pause();
  }

  /** Something completed or was sent: goes on where the bounds had stopped it, and settles what waited for it. */
  #proceed(): void {
    if (!this.#paused || !this.#reading()) return this.#settle();
    if (!this.#hasRoom()) {
      if (this.#account.pool.full) this.#account.pool.whenRoom(this.#proceedLater);
      return this.#settle();
    }
    this.#paused = false;
    this.#process();
    if (!this.#paused && this.#reading()) this.#connection.resume();
  }

  /** The ends that wait for requests in flight or replies on their way. */
  #settle(): void {
    if (this.#inFlight > 0) return;
    if (this.#disconnected && this.#state !== "closed") return this.#close();
    if (this.#state === "serving" || this.#state === "broken" || this.#replies.queuedBytes > 0) return;
    for (const resolve of this.#drainWaiters.splice(0)) resolve();
    if (this.#state === "finishing") this.#connection.end();
  }

  /** No more requests; those in flight are still answered. */
  #finish(end: TransmissionEnd): void {
    if (!this.#reading() && this.#state !== "stopped") return;
    this.#end ??= end;
    this.#state = "finishing";
    this.#connection.pause();
    if (!this.#processing) this.#settle();
  }

  #break(end: TransmissionEnd): void {
    if (this.#state === "broken" || this.#state === "closed") return;
    this.#end ??= end;
    this.#state = "broken";
    this.#connection.destroy();
  }

  #socketClosed(error: Error | undefined): void {
    const detail = error === undefined ? "" : describe(error);
    this.#end ??= { reason: error === undefined ? "end" : "socket", detail };
    if (this.#state !== "closed") this.#state = "broken";
    this.#disconnected = true;
    this.#settle();
  }

  #close(): void {
    this.#state = "closed";
    this.#window.release();
    this.#replies.discard();
    for (const resolve of this.#drainWaiters.splice(0)) resolve();
    this.#resolveClosed(this.#end ?? { reason: "end", detail: "" });
  }
}
