/**
 * The NBD wire format: numbers and codecs, no I/O. All fields are big-endian.
 * Source: the NBD protocol document (doc/proto.md of the NetworkBlockDevice project), fixed newstyle negotiation,
 * simple replies. Encoders and decoders are twins and touch exactly the bytes of their structure.
 *
 * | structure       | size | fields (bytes)                                                             |
 * |-----------------|------|----------------------------------------------------------------------------|
 * | greeting        |   18 | "NBDMAGIC" 8, "IHAVEOPT" 8, handshake flags 2                               |
 * | client flags    |    4 | flags 4                                                                    |
 * | option          |   16 | "IHAVEOPT" 8, option 4, length 4; then `length` bytes                       |
 * | option reply    |   20 | magic 8, option 4, reply type 4, length 4; then `length` bytes              |
 * | request         |   28 | magic 4, flags 2, type 2, cookie 8, offset 8, length 4; a write's payload   |
 * | simple reply    |   16 | magic 4, error 4, cookie 8; a successful read's payload                     |
 */

const NBD_MAGIC = 0x4e42444d41474943n;
export const OPTION_MAGIC = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;

export const GREETING_SIZE = 18;
export const CLIENT_FLAGS_SIZE = 4;
export const OPTION_HEADER_SIZE = 16;
export const OPTION_REPLY_HEADER_SIZE = 20;
export const REQUEST_SIZE = 28;
export const SIMPLE_REPLY_SIZE = 16;

/** Handshake flags of the server, client flags of the client: the same two bits. */
export const HANDSHAKE_FIXED_NEWSTYLE = 1;
export const HANDSHAKE_NO_ZEROES = 2;

export const OPTION_EXPORT_NAME = 1;
export const OPTION_ABORT = 2;
export const OPTION_LIST = 3;
export const OPTION_STARTTLS = 5;
export const OPTION_INFO = 6;
export const OPTION_GO = 7;

export const REPLY_ACK = 1;
export const REPLY_SERVER = 2;
export const REPLY_INFO = 3;
export const REPLY_ERROR_UNSUPPORTED = 0x80000001;
export const REPLY_ERROR_POLICY = 0x80000002;
export const REPLY_ERROR_INVALID = 0x80000003;
export const REPLY_ERROR_PLATFORM = 0x80000004;
export const REPLY_ERROR_TLS_REQUIRED = 0x80000005;
export const REPLY_ERROR_UNKNOWN = 0x80000006;
export const REPLY_ERROR_SHUTDOWN = 0x80000007;
export const REPLY_ERROR_TOO_BIG = 0x80000009;

export const INFO_EXPORT = 0;
export const INFO_NAME = 1;
export const INFO_BLOCK_SIZE = 3;

/** Transmission flags: what an export offers. The kernel takes the same bits as its server flags. */
export const FLAG_HAS_FLAGS = 1 << 0;
export const FLAG_READ_ONLY = 1 << 1;
export const FLAG_SEND_FLUSH = 1 << 2;
export const FLAG_SEND_FUA = 1 << 3;
export const FLAG_SEND_TRIM = 1 << 5;
export const FLAG_SEND_WRITE_ZEROES = 1 << 6;
export const FLAG_CAN_MULTI_CONN = 1 << 8;

export const COMMAND_READ = 0;
export const COMMAND_WRITE = 1;
export const COMMAND_DISCONNECT = 2;
export const COMMAND_FLUSH = 3;
export const COMMAND_TRIM = 4;
export const COMMAND_WRITE_ZEROES = 6;

export const COMMAND_FLAG_FUA = 1 << 0;
export const COMMAND_FLAG_NO_HOLE = 1 << 1;

export const EXPORT_NAME_LIMIT_BYTES = 4096;
/** The longest string of the protocol, error texts included. */
export const STRING_LIMIT_BYTES = 4096;
/** Bytes of zeroes after the answer to EXPORT_NAME unless both sides agreed on NO_ZEROES. */
export const EXPORT_NAME_PADDING_BYTES = 124;
/** The largest payload of a read or write that is served: the default every client may rely on. */
export const PAYLOAD_LIMIT_BYTES = 32 * 1024 * 1024;
export const PREFERRED_BLOCK_SIZE_BYTES = 4096;

/** Transmission flags of a device: everything it can honour. Flush covers all connections, the device being one. */
export function transmissionFlags(device: { readonly readOnly: boolean }): number {
  const always = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN;
  return device.readOnly ? always | FLAG_READ_ONLY : always | FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES;
}

export function encodeGreeting(flags: number): Buffer {
  const out = Buffer.alloc(GREETING_SIZE);
  out.writeBigUInt64BE(NBD_MAGIC, 0);
  out.writeBigUInt64BE(OPTION_MAGIC, 8);
  out.writeUInt16BE(flags, 16);
  return out;
}

export interface OptionHeader {
  magic: bigint;
  option: number;
  lengthBytes: number;
}

export function decodeOptionHeader(source: Buffer): OptionHeader {
  return {
    magic: source.readBigUInt64BE(0),
    option: source.readUInt32BE(8),
    lengthBytes: source.readUInt32BE(12),
  };
}

export function encodeOptionReply(option: number, type: number, data: Uint8Array): Buffer {
  const out = Buffer.alloc(OPTION_REPLY_HEADER_SIZE + data.length);
  out.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
  out.writeUInt32BE(option, 8);
  out.writeUInt32BE(type, 12);
  out.writeUInt32BE(data.length, 16);
  out.set(data, OPTION_REPLY_HEADER_SIZE);
  return out;
}

/** Payload of a REPLY_SERVER: one export's name. */
export function encodeListedExport(name: Uint8Array): Buffer {
  const out = Buffer.alloc(4 + name.length);
  out.writeUInt32BE(name.length, 0);
  out.set(name, 4);
  return out;
}

export function encodeInfoExport(sizeBytes: number, flags: number): Buffer {
  const out = Buffer.alloc(12);
  out.writeUInt16BE(INFO_EXPORT, 0);
  out.writeBigUInt64BE(BigInt(sizeBytes), 2);
  out.writeUInt16BE(flags, 10);
  return out;
}

export function encodeInfoName(name: Uint8Array): Buffer {
  const out = Buffer.alloc(2 + name.length);
  out.writeUInt16BE(INFO_NAME, 0);
  out.set(name, 2);
  return out;
}

export function encodeInfoBlockSize(sizes: { minimum: number; preferred: number; maximum: number }): Buffer {
  const out = Buffer.alloc(14);
  out.writeUInt16BE(INFO_BLOCK_SIZE, 0);
  out.writeUInt32BE(sizes.minimum, 2);
  out.writeUInt32BE(sizes.preferred, 6);
  out.writeUInt32BE(sizes.maximum, 10);
  return out;
}

/** Answer to EXPORT_NAME, which has no reply header. */
export function encodeExportNameAnswer(sizeBytes: number, flags: number, padded: boolean): Buffer {
  const out = Buffer.alloc(10 + (padded ? EXPORT_NAME_PADDING_BYTES : 0));
  out.writeBigUInt64BE(BigInt(sizeBytes), 0);
  out.writeUInt16BE(flags, 8);
  return out;
}

export interface InfoRequest {
  /** The name's bytes, not yet known to be UTF-8. */
  name: Buffer;
  /** The information types asked for. */
  requested: number[];
}

/** Data of an INFO or GO option; undefined where its lengths contradict each other. */
export function decodeInfoRequest(data: Buffer): InfoRequest | undefined {
  if (data.length < 6) return undefined;
  const nameLength = data.readUInt32BE(0);
  if (nameLength > data.length - 6) return undefined;
  const count = data.readUInt16BE(4 + nameLength);
  const start = 6 + nameLength;
  if (data.length !== start + 2 * count) return undefined;
  const requested: number[] = [];
  for (let index = 0; index < count; index += 1) requested.push(data.readUInt16BE(start + 2 * index));
  return { name: data.subarray(4, 4 + nameLength), requested };
}

/**
 * A request's fields, reused from request to request. 64-bit fields stay in halves: no allocation. Here and in replies a
 * DataView, whose accesses compile to one instruction each: Buffer's took 3 % of a random read.
 */
export class RequestHeader {
  magic = 0;
  flags = 0;
  type = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** Exact up to 2^53; larger offsets lose low bits and are out of range of every device anyway. */
  offset = 0;
  lengthBytes = 0;

  decode(source: DataView, position: number): void {
    this.magic = source.getUint32(position);
    this.flags = source.getUint16(position + 4);
    this.type = source.getUint16(position + 6);
    this.cookieHigh = source.getUint32(position + 8);
    this.cookieLow = source.getUint32(position + 12);
    this.offset = source.getUint32(position + 16) * 2 ** 32 + source.getUint32(position + 20);
    this.lengthBytes = source.getUint32(position + 24);
  }
}

export function encodeSimpleReply(
  target: DataView,
  position: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): void {
  target.setUint32(position, SIMPLE_REPLY_MAGIC);
  target.setUint32(position + 4, error);
  target.setUint32(position + 8, cookieHigh);
  target.setUint32(position + 12, cookieLow);
}

/** Turns an encoded reply without payload into one that says `error`. */
export function setSimpleReplyError(target: DataView, position: number, error: number): void {
  target.setUint32(position + 4, error);
}
