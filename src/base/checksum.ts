/**
 * CRC-32 (IEEE 802.3, as in zlib), by Node's native implementation. It finds damage, not malice.
 * Chained: crc32(b, crc32(a)) equals crc32 of a followed by b.
 */
import { crc32 as nativeCrc32 } from "node:zlib";

export function crc32(bytes: Uint8Array, previous = 0): number {
  return nativeCrc32(bytes, previous);
}
