/** The client's side of the wire for tests, written from the protocol document and apart from src/nbd/protocol.ts. */

export interface RequestFields {
  magic?: number;
  flags?: number;
  type: number;
  cookie: bigint;
  offset?: bigint;
  length?: number;
  payload?: Buffer;
}

export function request(fields: RequestFields): Buffer {
  const payload = fields.payload ?? Buffer.alloc(0);
  const out = Buffer.alloc(28);
  out.writeUInt32BE(fields.magic ?? 0x25609513, 0);
  out.writeUInt16BE(fields.flags ?? 0, 4);
  out.writeUInt16BE(fields.type, 6);
  out.writeBigUInt64BE(fields.cookie, 8);
  out.writeBigUInt64BE(fields.offset ?? 0n, 16);
  out.writeUInt32BE(fields.length ?? payload.length, 24);
  return Buffer.concat([out, payload]);
}

export interface Reply {
  error: number;
  cookie: bigint;
  payload: Buffer;
}

/** Takes all whole replies apart; `readLengths` says by cookie which ones carry a payload when they succeed. */
export function replies(bytes: Buffer, readLengths: ReadonlyMap<bigint, number> = new Map()): Reply[] {
  const out: Reply[] = [];
  let position = 0;
  while (position < bytes.length) {
    if (bytes.readUInt32BE(position) !== 0x67446698) throw new Error(`no reply at ${position}`);
    const error = bytes.readUInt32BE(position + 4);
    const cookie = bytes.readBigUInt64BE(position + 8);
    const length = error === 0 ? (readLengths.get(cookie) ?? 0) : 0;
    if (position + 16 + length > bytes.length) throw new Error(`reply at ${position} is cut short`);
    out.push({ error, cookie, payload: bytes.subarray(position + 16, position + 16 + length) });
    position += 16 + length;
  }
  return out;
}

export function option(number: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const out = Buffer.alloc(16);
  out.write("IHAVEOPT", "latin1");
  out.writeUInt32BE(number, 8);
  out.writeUInt32BE(data.length, 12);
  return Buffer.concat([out, data]);
}

export function infoData(name: string | Buffer, requested: number[] = []): Buffer {
  const bytes = Buffer.from(name as string);
  const out = Buffer.alloc(6 + bytes.length + 2 * requested.length);
  out.writeUInt32BE(bytes.length, 0);
  bytes.copy(out, 4);
  out.writeUInt16BE(requested.length, 4 + bytes.length);
  requested.forEach((type, index) => out.writeUInt16BE(type, 6 + bytes.length + 2 * index));
  return out;
}

export function clientFlags(flags: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(flags);
  return out;
}

export interface OptionReply {
  option: number;
  type: number;
  data: Buffer;
}

/** All option replies in `bytes`, which start after the greeting. */
export function optionReplies(bytes: Buffer): OptionReply[] {
  const out: OptionReply[] = [];
  let position = 0;
  while (position < bytes.length) {
    if (bytes.readBigUInt64BE(position) !== 0x3e889045565a9n) throw new Error(`no option reply at ${position}`);
    const length = bytes.readUInt32BE(position + 16);
    out.push({
      option: bytes.readUInt32BE(position + 8),
      type: bytes.readUInt32BE(position + 12),
      data: bytes.subarray(position + 20, position + 20 + length),
    });
    position += 20 + length;
  }
  return out;
}
