/**
 * A request at the doorway and while the device has it: validated once here, then trusted; and the object that waits
 * for a device's promise, reused, so that waiting costs no closure a request.
 */
import type { BlockDevice } from "../block/device.ts";
import { NBD_EINVAL, NBD_ENOSPC, NBD_EPERM } from "./errno.ts";
import type { RequestHeader } from "./protocol.ts";
import {
  COMMAND_DISCONNECT,
  COMMAND_FLAG_FUA,
  COMMAND_FLAG_NO_HOLE,
  COMMAND_FLUSH,
  COMMAND_READ,
  COMMAND_TRIM,
  COMMAND_WRITE,
  COMMAND_WRITE_ZEROES,
  PAYLOAD_LIMIT_BYTES,
} from "./protocol.ts";
import type { Slab } from "./slab-pool.ts";

/**
 * The error number of a request that must not run, 0 for one that may. The protocol's rules: a range outside the
 * export is EINVAL for reads and trims and ENOSPC for writes and zeroes; unknown flags and commands are EINVAL; changes
 * of a read-only export are EPERM. FUA is legal on every command. NO_HOLE is honoured by what writeZeroes promises
 * anyway: the range reads as zeroes, and space is never promised on an object store. FAST_ZERO is not offered.
 */
export function validateRequest(header: RequestHeader, device: BlockDevice): number {
  const { type, flags, offset, lengthBytes } = header;
  const known = type === COMMAND_WRITE_ZEROES ? COMMAND_FLAG_FUA | COMMAND_FLAG_NO_HOLE : COMMAND_FLAG_FUA;
  switch (type) {
    case COMMAND_READ:
    case COMMAND_WRITE:
    case COMMAND_TRIM:
    case COMMAND_WRITE_ZEROES:
      break;
    case COMMAND_DISCONNECT:
      return 0;
    case COMMAND_FLUSH:
      return (flags & ~known) !== 0 || offset !== 0 || lengthBytes !== 0 ? NBD_EINVAL : 0;
    default:
      return NBD_EINVAL;
  }
  if (type !== COMMAND_READ && device.readOnly) return NBD_EPERM;
  if ((flags & ~known) !== 0) return NBD_EINVAL;
  if ((type === COMMAND_READ || type === COMMAND_WRITE) && lengthBytes > PAYLOAD_LIMIT_BYTES) return NBD_EINVAL;
  if (offset + lengthBytes > device.sizeBytes) {
    return type === COMMAND_READ || type === COMMAND_TRIM ? NBD_EINVAL : NBD_ENOSPC;
  }
  const blockSizeBytes = device.blockSizeBytes;
  return offset % blockSizeBytes !== 0 || lengthBytes % blockSizeBytes !== 0 ? NBD_EINVAL : 0;
}

/** A request whose device call answered with a promise. */
export class PendingRequest {
  cookieHigh = 0;
  cookieLow = 0;
  /** What the device works on: a read's reply or a write's payload. */
  slab: Slab | undefined;
  /** Where a read's reply starts in its slab. */
  start = 0;
  /** A read's payload; 0 for everything else. */
  readBytes = 0;
  readonly done: () => void;
  readonly failed: (error: unknown) => void;

  constructor(settled: (pending: PendingRequest, error: unknown) => void) {
    this.done = () => settled(this, undefined);
    this.failed = (error) => settled(this, error ?? new Error("a device failed without an error"));
  }
}
