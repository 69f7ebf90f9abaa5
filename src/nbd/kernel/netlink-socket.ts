/**
 * One request to the kernel's generic netlink and its acknowledgement, with a deadline.
 * A socket serves one request and is closed after it, so a late answer can meet no other request. The kernel handles
 * a request within send(2); that call runs on a thread of Node's pool, hence no request here stops the calling thread.
 * A request that the kernel does not finish keeps that pool thread until it does: callers must not pile them up.
 * A request that waits for nobody may be sent on the calling thread (`whenHandled`), which can so act on it without delay.
 */
import type { Clock } from "../../base/clock.ts";
import { OperationError } from "../../base/errors.ts";
import { type Libc, SystemCallError } from "./libc.ts";
import { decodeError, decodeMessages, encodeMessage, FLAG_ACKNOWLEDGE, FLAG_REQUEST, TYPE_ERROR } from "./netlink.ts";

/** The kernel's refusal of a request. */
export class NetlinkError extends Error {
  /** The errno's name: "EBUSY". */
  readonly code: string;

  constructor(code: string) {
    super(`the kernel answered ${code}`);
    this.name = "NetlinkError";
    this.code = code;
  }
}

const RECEIVE_SIZE_BYTES = 65536;
const POLL_INTERVAL_MS = 2;
/** An answer of the nbd family is one or two: whatever goes on for longer is no answer to us. */
const MAX_DATAGRAMS = 64;
const SEQUENCE = 1;

export interface NetlinkRequest {
  family: number;
  payload: Buffer;
  deadlineMs: number;
  /** The request is sent on the calling thread, and this is called when the kernel has handled it, whatever it answers. */
  whenHandled?: (() => void) | undefined;
}

/**
 * Sends `payload` to `family` and returns the payloads of the messages that precede the acknowledgement.
 * Throws NetlinkError when the kernel refuses; OperationError "unavailable" when no socket can be had or no answer
 * came within `deadlineMs` (the request may still take effect then), "corrupt" for what is no answer.
 */
export async function requestNetlink(parts: { libc: Libc; clock: Clock }, request: NetlinkRequest): Promise<Buffer[]> {
  const { libc, clock } = parts;
  const endMs = clock.monotonicMs() + request.deadlineMs;
  const fd = openSocket(libc);
  const message = encodeMessage({
    type: request.family,
    flags: FLAG_REQUEST | FLAG_ACKNOWLEDGE,
    sequence: SEQUENCE,
    port: 0,
    payload: request.payload,
  });
  const sent =
    request.whenHandled === undefined ? libc.sendNetlink(fd, message) : sendNow(libc, fd, message, request.whenHandled);
  const closed = sent.then(
    () => undefined,
    () => undefined,
  );
  try {
    await within(clock, sent, request.deadlineMs);
    const target = Buffer.alloc(RECEIVE_SIZE_BYTES);
    const payloads: Buffer[] = [];
    for (let received = 0; received < MAX_DATAGRAMS;) {
      const datagram = libc.receive(fd, target);
      received += datagram === undefined ? 0 : 1;
      if (datagram === undefined) {
        if (clock.monotonicMs() >= endMs) throw tooLate(request.deadlineMs);
        await clock.sleep(POLL_INTERVAL_MS);
      } else if (takeAnswers(libc, datagram, payloads)) {
        return payloads;
      }
    }
    throw new OperationError("corrupt", "a netlink answer does not come to its end", {
      context: { datagrams: MAX_DATAGRAMS },
    });
  } catch (error) {
    if (error instanceof SystemCallError) {
      throw new OperationError("unavailable", "netlink failed", { cause: error, context: { error: error.code } });
    }
    throw error;
  } finally {
    void closed.then(() => libc.close(fd));
  }
}

async function sendNow(libc: Libc, fd: number, message: Buffer, whenHandled: () => void): Promise<void> {
  libc.sendNetlinkNow(fd, message);
  whenHandled();
}

/** Collects payloads; true once the acknowledgement has come. */
function takeAnswers(libc: Libc, datagram: Buffer, payloads: Buffer[]): boolean {
  for (const message of decodeMessages(datagram)) {
    if (message.sequence !== SEQUENCE) continue;
    if (message.type !== TYPE_ERROR) {
      payloads.push(Buffer.from(message.payload));
      continue;
    }
    const errno = decodeError(message.payload);
    if (errno !== 0) throw new NetlinkError(libc.errorName(errno));
    return true;
  }
  return false;
}

function openSocket(libc: Libc): number {
  try {
    return libc.netlinkSocket();
  } catch (cause) {
    throw new OperationError("unavailable", "cannot open a netlink socket: does the sandbox allow AF_NETLINK?", {
      cause,
    });
  }
}

async function within(clock: Clock, work: Promise<void>, ms: number): Promise<void> {
  const late = Promise.withResolvers<never>();
  const timer = clock.after(ms, () => late.reject(tooLate(ms)));
  try {
    await Promise.race([work, late.promise]);
  } finally {
    timer.cancel();
  }
}

function tooLate(ms: number): OperationError {
  return new OperationError("unavailable", "the kernel did not answer in time: it may wait for the device's own I/O", {
    context: { deadlineMs: ms },
  });
}
