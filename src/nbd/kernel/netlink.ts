/**
 * Generic netlink as bytes: messages, attributes, acknowledgements. Pure encode and decode, no I/O.
 * Everything is in the machine's own byte order and padded to 4 bytes (unlike the NBD protocol, whose codec is apart).
 * A decoder returns values or throws OperationError "corrupt", never a part, and never reads beyond what it was given.
 * Source: Linux include/uapi/linux/netlink.h, genetlink.h.
 *
 * | structure | offset | size | field                                                             |
 * |-----------|--------|------|-------------------------------------------------------------------|
 * | message   | 0      | 4    | length: header and payload, without the padding                   |
 * |           | 4      | 2    | type: 2 = acknowledgement or error, ≥ 16 = family                 |
 * |           | 6      | 2    | flags                                                             |
 * |           | 8      | 4    | sequence                                                          |
 * |           | 12     | 4    | port: 0 = kernel                                                  |
 * | generic   | 0      | 1    | command (its payload follows a 4-byte header)                     |
 * |           | 1      | 1    | version                                                           |
 * |           | 2      | 2    | reserved: 0                                                       |
 * | attribute | 0      | 2    | length: header and value, without the padding                     |
 * |           | 2      | 2    | type; bit 15 = value holds attributes, bit 14 = big-endian value  |
 * | error     | 0      | 4    | 0 or −errno (the header of the message it answers follows)        |
 */
import { assert } from "../../base/assert.ts";
import { OperationError } from "../../base/errors.ts";

export const MESSAGE_HEADER_SIZE = 16;
export const GENERIC_HEADER_SIZE = 4;
export const ATTRIBUTE_HEADER_SIZE = 4;

export const TYPE_ERROR = 2;
export const FLAG_REQUEST = 1;
export const FLAG_ACKNOWLEDGE = 4;

const ATTRIBUTE_NESTED = 0x8000;
const ATTRIBUTE_TYPE_MASK = 0x3fff;

const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

export interface NetlinkMessage {
  type: number;
  flags: number;
  sequence: number;
  port: number;
  payload: Buffer;
}

export interface GenericMessage {
  command: number;
  version: number;
  attributes: Attribute[];
}

export interface Attribute {
  type: number;
  /** For a nested attribute: its encoded attributes. */
  value: Buffer;
}

export function encodeMessage(message: NetlinkMessage): Buffer {
  const length = MESSAGE_HEADER_SIZE + message.payload.length;
  const bytes = Buffer.alloc(padded(length));
  const view = viewOf(bytes);
  view.setUint32(0, length, littleEndian);
  view.setUint16(4, message.type, littleEndian);
  view.setUint16(6, message.flags, littleEndian);
  view.setUint32(8, message.sequence, littleEndian);
  view.setUint32(12, message.port, littleEndian);
  message.payload.copy(bytes, MESSAGE_HEADER_SIZE);
  return bytes;
}

/** The messages of one datagram. */
export function decodeMessages(bytes: Buffer): NetlinkMessage[] {
  const view = viewOf(bytes);
  const messages: NetlinkMessage[] = [];
  for (let offset = 0; offset < bytes.length;) {
    const left = bytes.length - offset;
    const length = left < MESSAGE_HEADER_SIZE ? 0 : view.getUint32(offset, littleEndian);
    if (length < MESSAGE_HEADER_SIZE || length > left) throw corrupt("message", offset, length);
    messages.push({
      type: view.getUint16(offset + 4, littleEndian),
      flags: view.getUint16(offset + 6, littleEndian),
      sequence: view.getUint32(offset + 8, littleEndian),
      port: view.getUint32(offset + 12, littleEndian),
      payload: bytes.subarray(offset + MESSAGE_HEADER_SIZE, offset + length),
    });
    offset += padded(length);
  }
  return messages;
}

/** The payload of a generic netlink message from its encoded attributes. */
export function encodeGeneric(command: number, version: number, attributes: readonly Buffer[]): Buffer {
  return Buffer.concat([Buffer.from([command, version, 0, 0]), ...attributes]);
}

export function decodeGeneric(payload: Buffer): GenericMessage {
  if (payload.length < GENERIC_HEADER_SIZE) throw corrupt("generic header", 0, payload.length);
  return {
    command: payload[0],
    version: payload[1],
    attributes: decodeAttributes(payload.subarray(GENERIC_HEADER_SIZE)),
  };
}

/** The errno (positive) that an error message carries; 0 for an acknowledgement. */
export function decodeError(payload: Buffer): number {
  const value = payload.length < 4 ? 1 : viewOf(payload).getInt32(0, littleEndian);
  if (value > 0) throw corrupt("error", 0, payload.length);
  return value === 0 ? 0 : -value;
}

export function encodeAttribute(type: number, value: Uint8Array): Buffer {
  const length = ATTRIBUTE_HEADER_SIZE + value.length;
  assert(length <= 0xffff, `netlink attribute of ${value.length} bytes`);
  const bytes = Buffer.alloc(padded(length));
  const view = viewOf(bytes);
  view.setUint16(0, length, littleEndian);
  view.setUint16(2, type, littleEndian);
  bytes.set(value, ATTRIBUTE_HEADER_SIZE);
  return bytes;
}

export function encodeNested(type: number, attributes: readonly Buffer[]): Buffer {
  return encodeAttribute(type | ATTRIBUTE_NESTED, Buffer.concat(attributes));
}

export function encodeU16(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(2);
  viewOf(bytes).setUint16(0, value, littleEndian);
  return encodeAttribute(type, bytes);
}

export function encodeU32(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  viewOf(bytes).setUint32(0, value, littleEndian);
  return encodeAttribute(type, bytes);
}

export function encodeU64(type: number, value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  viewOf(bytes).setBigUint64(0, value, littleEndian);
  return encodeAttribute(type, bytes);
}

/** A string with the NUL that the kernel wants at its end. */
export function encodeString(type: number, value: string): Buffer {
  assert(!value.includes("\0"), "netlink string holds a NUL");
  return encodeAttribute(type, Buffer.from(`${value}\0`));
}

export function decodeAttributes(bytes: Buffer): Attribute[] {
  const view = viewOf(bytes);
  const attributes: Attribute[] = [];
  for (let offset = 0; offset < bytes.length;) {
    const left = bytes.length - offset;
    const length = left < ATTRIBUTE_HEADER_SIZE ? 0 : view.getUint16(offset, littleEndian);
    if (length < ATTRIBUTE_HEADER_SIZE || length > left) throw corrupt("attribute", offset, length);
    attributes.push({
      type: view.getUint16(offset + 2, littleEndian) & ATTRIBUTE_TYPE_MASK,
      value: bytes.subarray(offset + ATTRIBUTE_HEADER_SIZE, offset + length),
    });
    offset += padded(length);
  }
  return attributes;
}

/** The unsigned 16-bit attribute `type`, or undefined where there is none. */
export function getU16(attributes: readonly Attribute[], type: number): number | undefined {
  return fixed(attributes, type, 2)?.getUint16(0, littleEndian);
}

/** The unsigned 32-bit attribute `type`, or undefined where there is none. */
export function getU32(attributes: readonly Attribute[], type: number): number | undefined {
  return fixed(attributes, type, 4)?.getUint32(0, littleEndian);
}

function fixed(attributes: readonly Attribute[], type: number, size: number): DataView | undefined {
  const value = attributes.find((attribute) => attribute.type === type)?.value;
  if (value === undefined) return undefined;
  if (value.length !== size) throw corrupt("value", type, value.length);
  return viewOf(value);
}

function viewOf(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function padded(length: number): number {
  return (length + 3) & ~3;
}

function corrupt(what: string, offset: number, length: number): OperationError {
  return new OperationError("corrupt", `malformed netlink ${what}`, { context: { offset, length } });
}
