/** What simulated users write: each block says its version and its number at every sector, so that no part can be another's. */
import { mustVolumeId } from "../../src/volume/identity.ts";
import { OracleError } from "./oracle.ts";

export const volumeId = mustVolumeId("vol-sim");
export const BLOCK = 4096;
const SECTOR = 512;
/** Blocks of a shard of the map: the blocks used lie on both sides of the first border. */
const BORDER_BLOCK = 32_768;
export const VOLUME_BYTES = 256 * 1024 * 1024;
export const FIRST_BLOCK = BORDER_BLOCK - 64;
export const OFFSET_BYTES = FIRST_BLOCK * BLOCK;

export function encodeVersion(version: number, lba: number, blocks: number): Buffer {
  const bytes = Buffer.alloc(blocks * BLOCK, version & 0xff);
  for (let block = 0; block < blocks; block += 1) {
    for (let at = block * BLOCK; at < (block + 1) * BLOCK; at += SECTOR) {
      bytes.writeUInt32LE(version, at);
      bytes.writeUInt32LE(lba + block, at + 4);
    }
  }
  return bytes;
}

/** The version of each block; throws where a block is no version whole. */
export function decodeVersions(bytes: Buffer, lba: number): number[] {
  const versions: number[] = [];
  for (let start = 0; start < bytes.length; start += BLOCK) {
    const version = bytes.readUInt32LE(start);
    const block = lba + start / BLOCK;
    for (let at = start; at < start + BLOCK; at += SECTOR) {
      const isWhole =
        bytes.readUInt32LE(at) === version &&
        bytes.readUInt32LE(at + 4) === (version === 0 ? 0 : block) &&
        bytes[at + SECTOR - 1] === (version & 0xff);
      if (!isWhole) throw new OracleError(`block ${block} is no version whole: it begins as version ${version}`);
    }
    versions.push(version);
  }
  return versions;
}
