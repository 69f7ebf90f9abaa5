/**
 * The NBD edge of error kinds: one number a kind for requests, one for options of the handshake.
 * The numbers are the protocol's own (they equal Linux's), so nothing of the machine's errno leaks through.
 */
import type { ErrorKind } from "../base/errors.ts";
import {
  REPLY_ERROR_INVALID,
  REPLY_ERROR_PLATFORM,
  REPLY_ERROR_POLICY,
  REPLY_ERROR_SHUTDOWN,
  REPLY_ERROR_UNKNOWN,
} from "./protocol.ts";

export const NBD_EPERM = 1;
export const NBD_EIO = 5;
export const NBD_EINVAL = 22;
export const NBD_ENOSPC = 28;
export const NBD_ESHUTDOWN = 108;

/** Error field of a reply in transmission. */
export const REQUEST_ERRNO: Readonly<Record<ErrorKind, number>> = {
  invalid: NBD_EINVAL,
  "not-found": NBD_EIO,
  conflict: NBD_EIO,
  busy: NBD_EIO,
  "in-use": NBD_EPERM,
  exhausted: NBD_ENOSPC,
  unavailable: NBD_EIO,
  fenced: NBD_ESHUTDOWN,
  corrupt: NBD_EIO,
};

/** Reply type to an option whose export could not be opened. */
export const OPTION_ERROR: Readonly<Record<ErrorKind, number>> = {
  invalid: REPLY_ERROR_INVALID,
  "not-found": REPLY_ERROR_UNKNOWN,
  conflict: REPLY_ERROR_POLICY,
  busy: REPLY_ERROR_POLICY,
  "in-use": REPLY_ERROR_POLICY,
  exhausted: REPLY_ERROR_POLICY,
  unavailable: REPLY_ERROR_PLATFORM,
  fenced: REPLY_ERROR_SHUTDOWN,
  corrupt: REPLY_ERROR_PLATFORM,
};
