/**
 * Blocks outside the volume, behind right checksums: what a broken writer might leave in checkpoint, log or journal. Each
 * is corruption of this one volume, and no assertion, which would end the server with all its others.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { CheckpointShards, decodeCheckpoint, encodeCheckpoint } from "../../src/volume/format/checkpoint.ts";
import { decodeSegmentHead, encodeSegmentHead } from "../../src/volume/format/segment.ts";
import { Journal } from "../../src/volume/journal.ts";
import { getMeta } from "../../src/volume/names.ts";
import { EngineHarness, volumeId } from "../suites/engine-harness.ts";

const BLOCK = 4096;
const SIZE_BYTES = 64 * 1024 * 1024;
const nonce = Buffer.alloc(16, 7);

const isCorrupt = (error: unknown): boolean => isKind(error, "corrupt") && error.message.includes("outside the volume");

/** A volume with something in it, closed; and its keys that contain `part`. */
async function closedVolume(part: string): Promise<{ harness: EngineHarness; keys: string[] }> {
  const harness = new EngineHarness();
  await harness.create(SIZE_BYTES);
  const volume = await harness.open();
  await volume.write(0, Buffer.alloc(BLOCK, 1), false);
  await volume.flush();
  await (part === "/checkpoint/" ? harness.close() : volume.leave());
  const keys = (await harness.keys("v1/")).filter((key) => key.includes(part));
  harness.disk = new MemoryDisk();
  return { harness, keys };
}

async function replace(harness: EngineHarness, key: string, body: Buffer): Promise<void> {
  await harness.counting.inner.delete([key]);
  await harness.counting.inner.putIfAbsent(key, [body]);
}

test("a checkpoint of a shard that the volume does not have is corrupt", async () => {
  const { harness, keys } = await closedVolume("/checkpoint/");
  const checkpoint = decodeCheckpoint((await harness.counting.inner.get(keys[0]))!, {});
  const shards = new CheckpointShards(1);
  shards.set(0, { shard: 500, mapObject: 0, offset: 100, length: 100 });
  const header = { uid: checkpoint.uid, epoch: checkpoint.epoch, sequence: checkpoint.number, nonce };
  await replace(harness, keys[0], encodeCheckpoint(header, { ...checkpoint, sizeBytes: 2 ** 44, shards }));
  await assert.rejects(harness.open(), isCorrupt);
});

test("a segment with blocks behind the volume's end is corrupt", async () => {
  const { harness, keys } = await closedVolume("v1/log/01/");
  const body = (await harness.counting.inner.get(keys[0]))!;
  const head = decodeSegmentHead(body, {});
  head.extents.lba[0] = 2 ** 33;
  const { uid, epoch, sequence } = head;
  const forged = encodeSegmentHead({ uid, epoch, sequence, nonce }, head);
  await replace(harness, keys[0], Buffer.concat([forged, body.subarray(head.dataOffset)]));
  await assert.rejects(harness.open(), isCorrupt);
});

test("a journal with blocks behind the volume's end is corrupt", async () => {
  const harness = new EngineHarness();
  await harness.create(SIZE_BYTES);
  const meta = (await getMeta(harness.store, volumeId))!;
  const disk = await harness.disk.directory("journal");
  const limits = { limitBytes: 4 * 1024 * 1024, fileBytes: 1024 * 1024 };
  const journal = await Journal.open({ disk, uid: meta.uid, random: new SeededRandom(1), log: nullLog, ...limits });
  await journal.begin(1);
  journal.append(1, SIZE_BYTES / BLOCK - 1, 1, Buffer.alloc(BLOCK, 1));
  journal.append(1, SIZE_BYTES / BLOCK, 1, Buffer.alloc(BLOCK, 2));
  await journal.close();
  await assert.rejects(harness.open(), isCorrupt);
});
