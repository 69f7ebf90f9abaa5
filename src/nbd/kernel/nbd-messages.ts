/**
 * The messages of the kernel's generic netlink family "nbd" (version 1) and of the controller that names its number.
 * Pure encode and decode. The backend identifier goes with every request: since Linux 5.14 the kernel refuses
 * (EINVAL) to reconfigure a device that was connected with one by a request without.
 * Source: Linux include/uapi/linux/nbd-netlink.h, include/uapi/linux/nbd.h, drivers/block/nbd.c.
 */
import { OperationError } from "../../base/errors.ts";
import {
  decodeGeneric,
  encodeGeneric,
  encodeNested,
  encodeString,
  encodeU32,
  encodeU64,
  getU16,
  getU32,
} from "./netlink.ts";

/** Number of the family that resolves the others. */
export const CONTROLLER_FAMILY = 16;
const CONTROLLER_GET_FAMILY = 3;
const CONTROLLER_VERSION = 2;
const CONTROLLER_FAMILY_ID = 1;
const CONTROLLER_FAMILY_NAME = 2;

const NBD_FAMILY_NAME = "nbd";
const NBD_VERSION = 1;

const COMMAND_CONNECT = 1;
const COMMAND_DISCONNECT = 2;
const COMMAND_RECONFIGURE = 3;

const ATTRIBUTE_INDEX = 1;
const ATTRIBUTE_SIZE_BYTES = 2;
const ATTRIBUTE_BLOCK_SIZE_BYTES = 3;
const ATTRIBUTE_TIMEOUT = 4;
const ATTRIBUTE_SERVER_FLAGS = 5;
const ATTRIBUTE_SOCKETS = 7;
const ATTRIBUTE_DEAD_CONNECTION_TIMEOUT = 8;
const ATTRIBUTE_BACKEND_IDENTIFIER = 10;
const SOCKET_ITEM = 1;
const SOCKET_FD = 1;

export interface ConnectMessage {
  /** Undefined: the kernel picks a free device, or makes one beyond its `nbds_max`. */
  index: number | undefined;
  fds: readonly number[];
  sizeBytes: number;
  blockSizeBytes: number;
  timeoutSeconds: number;
  deadConnectionTimeoutSeconds: number;
  /** NBD transmission flags. */
  flags: number;
  backendIdentifier: string;
}

/** All but index and identifier are left as they are where undefined. */
export interface ReconfigureMessage {
  index: number;
  backendIdentifier: string;
  fds?: readonly number[];
  sizeBytes?: number;
  timeoutSeconds?: number;
  deadConnectionTimeoutSeconds?: number;
}

export function encodeGetFamily(): Buffer {
  return encodeGeneric(CONTROLLER_GET_FAMILY, CONTROLLER_VERSION, [
    encodeString(CONTROLLER_FAMILY_NAME, NBD_FAMILY_NAME),
  ]);
}

export function decodeFamily(payload: Buffer): number {
  return must(getU16(decodeGeneric(payload).attributes, CONTROLLER_FAMILY_ID), "family number");
}

export function encodeConnect(message: ConnectMessage): Buffer {
  return encodeGeneric(COMMAND_CONNECT, NBD_VERSION, [
    ...(message.index === undefined ? [] : [encodeU32(ATTRIBUTE_INDEX, message.index)]),
    encodeU64(ATTRIBUTE_SIZE_BYTES, BigInt(message.sizeBytes)),
    encodeU64(ATTRIBUTE_BLOCK_SIZE_BYTES, BigInt(message.blockSizeBytes)),
    encodeU64(ATTRIBUTE_TIMEOUT, BigInt(message.timeoutSeconds)),
    encodeU64(ATTRIBUTE_DEAD_CONNECTION_TIMEOUT, BigInt(message.deadConnectionTimeoutSeconds)),
    encodeU64(ATTRIBUTE_SERVER_FLAGS, BigInt(message.flags)),
    encodeString(ATTRIBUTE_BACKEND_IDENTIFIER, message.backendIdentifier),
    encodeSockets(message.fds),
  ]);
}

/** The index of the device that was connected. */
export function decodeConnected(payload: Buffer): number {
  return must(getU32(decodeGeneric(payload).attributes, ATTRIBUTE_INDEX), "device index");
}

export function encodeReconfigure(message: ReconfigureMessage): Buffer {
  const { fds, sizeBytes, timeoutSeconds, deadConnectionTimeoutSeconds: deadSeconds } = message;
  return encodeGeneric(COMMAND_RECONFIGURE, NBD_VERSION, [
    encodeU32(ATTRIBUTE_INDEX, message.index),
    encodeString(ATTRIBUTE_BACKEND_IDENTIFIER, message.backendIdentifier),
    ...(sizeBytes === undefined ? [] : [encodeU64(ATTRIBUTE_SIZE_BYTES, BigInt(sizeBytes))]),
    ...(timeoutSeconds === undefined ? [] : [encodeU64(ATTRIBUTE_TIMEOUT, BigInt(timeoutSeconds))]),
    ...(deadSeconds === undefined ? [] : [encodeU64(ATTRIBUTE_DEAD_CONNECTION_TIMEOUT, BigInt(deadSeconds))]),
    ...(fds === undefined ? [] : [encodeSockets(fds)]),
  ]);
}

export function encodeDisconnect(index: number, backendIdentifier: string): Buffer {
  return encodeGeneric(COMMAND_DISCONNECT, NBD_VERSION, [
    encodeU32(ATTRIBUTE_INDEX, index),
    encodeString(ATTRIBUTE_BACKEND_IDENTIFIER, backendIdentifier),
  ]);
}

function encodeSockets(fds: readonly number[]): Buffer {
  return encodeNested(
    ATTRIBUTE_SOCKETS,
    fds.map((fd) => encodeNested(SOCKET_ITEM, [encodeU32(SOCKET_FD, fd)])),
  );
}

function must(value: number | undefined, what: string): number {
  if (value !== undefined) return value;
  throw new OperationError("corrupt", `the kernel's netlink answer lacks the ${what}`);
}
