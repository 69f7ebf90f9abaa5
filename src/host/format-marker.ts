/**
 * The marker of an unfinished mkfs: one 4 KiB block near the end of a device, outside the filesystem, that says "a
 * filesystem is being made here, nobody has mounted it yet". It is written and flushed before mkfs touches the device
 * and cleared after mkfs has ended and was flushed, so that (the volume being a prefix of its writes after any loss)
 *   marker there  → no filesystem on this device was ever mounted: mkfs may run again;
 *   marker absent → mkfs has ended, or never began: nothing may be formatted unless the volume was never written.
 * The filesystem ends RESERVED_BYTES before the device does. mkfs.xfs overwrites the last 128 KiB of the device itself
 * (measured with 6.1), so the marker is the first block of the reserve, 132 KiB before that.
 * docs/decisions/0201-unfinished-mkfs.md has the proof.
 *
 * Block, little-endian: 0 magic "S3BFMT01" | 8 u32 length of the volume id | 12 volume id, ASCII, at most 63 bytes, then
 * zeroes | 4088 u32 zero | 4092 u32 CRC-32 of bytes 0..4092.
 */
import { assert } from "../base/assert.ts";
import { crc32 } from "../base/checksum.ts";
import { DEVICE_BLOCK_BYTES, readBlock, writeBlock } from "./block-device.ts";

export const RESERVED_BYTES = 260 * 1024;
const magic = Buffer.from("S3BFMT01", "latin1");
const lengthOffset = 8;
const idOffset = 12;
const crcOffset = DEVICE_BLOCK_BYTES - 4;
const maxIdBytes = 63;

export function encodeFormatMarker(volumeId: string): Buffer {
  const block = Buffer.alloc(DEVICE_BLOCK_BYTES);
  assert(volumeId.length <= maxIdBytes, "volume ids are validated at the doorway");
  magic.copy(block, 0);
  block.writeUInt32LE(volumeId.length, lengthOffset);
  block.write(volumeId, idOffset, "latin1");
  block.writeUInt32LE(crc32(block.subarray(0, crcOffset)), crcOffset);
  return block;
}

/** True where `block` is exactly the marker of this volume. */
export function isFormatMarker(block: Buffer, volumeId: string): boolean {
  return block.equals(encodeFormatMarker(volumeId));
}

/** True where a mkfs on this device did not end. */
export async function hasFormatMarker(device: string, sizeBytes: number, volumeId: string): Promise<boolean> {
  if (sizeBytes <= RESERVED_BYTES) return false;
  return isFormatMarker(await readBlock(device, sizeBytes - RESERVED_BYTES), volumeId);
}

/** Durable when it resolves. */
export async function writeFormatMarker(device: string, sizeBytes: number, volumeId: string): Promise<void> {
  assert(sizeBytes > RESERVED_BYTES, "the reserve lies inside the device");
  await writeBlock(device, sizeBytes - RESERVED_BYTES, encodeFormatMarker(volumeId));
}

/** Durable when it resolves. */
export async function clearFormatMarker(device: string, sizeBytes: number): Promise<void> {
  await writeBlock(device, sizeBytes - RESERVED_BYTES, Buffer.alloc(DEVICE_BLOCK_BYTES));
}
