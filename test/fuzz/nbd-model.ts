/**
 * The transmission phase as the protocol document has it, over an array: no streaming, no memory, no promises. Says for
 * the bytes of one client which replies it gets, how its connection ends, and what the device holds then.
 */
const MAGIC = 0x25609513;
const NO_ERROR = 0;
const EINVAL = 22;
const ENOSPC = 28;
const PAYLOAD_LIMIT = 32 * 1024 * 1024;
/** A write that claims more ends the connection. */
const HARD_LIMIT = 4 * PAYLOAD_LIMIT;

interface Frame {
  flags: number;
  type: number;
  cookie: Buffer;
  offset: bigint;
  length: number;
}

export interface ExpectedAnswer {
  replies: Buffer;
  /** "end" where the client stops, also in the midst of a request. */
  end: "disconnect" | "end" | "protocol";
}

export class NbdModel {
  readonly content: Buffer;
  readonly #blockBytes: number;

  constructor(sizeBytes: number, blockBytes: number) {
    this.content = Buffer.alloc(sizeBytes);
    this.#blockBytes = blockBytes;
  }

  answer(input: Buffer): ExpectedAnswer {
    const replies: Buffer[] = [];
    let at = 0;
    while (at + 28 <= input.length) {
      if (input.readUInt32BE(at) !== MAGIC) return { replies: Buffer.concat(replies), end: "protocol" };
      const frame = {
        flags: input.readUInt16BE(at + 4),
        type: input.readUInt16BE(at + 6),
        cookie: input.subarray(at + 8, at + 16),
        offset: input.readBigUInt64BE(at + 16),
        length: input.readUInt32BE(at + 24),
      };
      at += 28;
      const payloadBytes = frame.type === 1 ? frame.length : 0;
      if (payloadBytes > HARD_LIMIT) return { replies: Buffer.concat(replies), end: "protocol" };
      if (at + payloadBytes > input.length) break;
      if (frame.type === 2) return { replies: Buffer.concat(replies), end: "disconnect" };
      replies.push(this.#run(frame, input.subarray(at, at + payloadBytes)));
      at += payloadBytes;
    }
    return { replies: Buffer.concat(replies), end: "end" };
  }

  #run(frame: Frame, payload: Buffer): Buffer {
    const error = this.errorOf(frame);
    const head = Buffer.alloc(16);
    head.writeUInt32BE(0x67446698, 0);
    head.writeUInt32BE(error, 4);
    frame.cookie.copy(head, 8);
    if (error !== 0) return head;
    const start = Number(frame.offset);
    const end = start + frame.length;
    if (frame.type === 0) return Buffer.concat([head, this.content.subarray(start, end)]);
    if (frame.type === 1) payload.copy(this.content, start);
    if (frame.type === 4 || frame.type === 6) this.content.fill(0, start, end);
    return head;
  }

  /** What the request is answered; it depends on nothing that came before. */
  errorOf({ flags, type, offset, length }: Omit<Frame, "cookie">): number {
    if (![0, 1, 3, 4, 6].includes(type)) return EINVAL;
    if ((flags & ~(type === 6 ? 3 : 1)) !== 0) return EINVAL;
    if (type === 3) return offset === 0n && length === 0 ? NO_ERROR : EINVAL;
    if (type <= 1 && length > PAYLOAD_LIMIT) return EINVAL;
    if (offset + BigInt(length) > BigInt(this.content.length)) return type === 0 || type === 4 ? EINVAL : ENOSPC;
    const isAligned = offset % BigInt(this.#blockBytes) === 0n && length % this.#blockBytes === 0;
    return isAligned ? NO_ERROR : EINVAL;
  }
}
