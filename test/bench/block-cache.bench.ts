/**
 * Reads of 4 KiB from a block cache on a real disk, page-cached: `node test/bench/block-cache.bench.ts [directory]`.
 * Prints reads per second of one thread, by the clock and by the processor time they took (which a busy machine does
 * not change as much), and the memory of the index per cached GiB.
 */
import { promises as fs } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { openSystemDisk } from "../../src/base/system-disk.ts";
import { BlockCache } from "../../src/volume/block-cache.ts";
import { type ObjectIdentity, PART_BYTES } from "../../src/volume/cache-index.ts";
import { isIntactRawFrame, RAW_FRAME_BYTES, sealRawFrame, segmentFrameSeed } from "../../src/volume/format/frame.ts";
import type { VolumeUid } from "../../src/volume/identity.ts";

const CACHE_BYTES = 256 * 1024 * 1024;
const SEGMENT_BYTES = 32 * 1024 * 1024;
const FRAMES = Math.floor(SEGMENT_BYTES / RAW_FRAME_BYTES);
const READS = 400_000;
const uid = "0123456789abcdef".repeat(2) as VolumeUid;

const directory = await fs.mkdtemp(join(process.argv[2] ?? tmpdir(), "s3block-bench-"));
try {
  const cache = await BlockCache.open({
    disk: await openSystemDisk(directory),
    capacityBytes: CACHE_BYTES,
    clock: systemClock,
    log: nullLog,
  });
  const objects: ObjectIdentity[] = [];
  for (let sequence = 1; sequence < CACHE_BYTES / SEGMENT_BYTES; sequence += 1) {
    const object: ObjectIdentity = { uid, epoch: 1, sequence, kind: "segment" };
    objects.push(object);
    await fill(cache, object);
  }
  const { indexBytes, capacityParts } = cache.stats();
  const perGib = (indexBytes / capacityParts) * (1024 ** 3 / PART_BYTES);
  print(`index ${(perGib / 1024 ** 2).toFixed(2)} MiB per GiB of cache`);
  const block = Buffer.allocUnsafe(4096);
  const frame = Buffer.allocUnsafe(RAW_FRAME_BYTES);
  measure("readSync, 4096 bytes, aligned", objects, (object, number) => cache.readSync(object, number * 4096, block));
  measure("readSync, frame", objects, (object, number) => cache.readSync(object, number * RAW_FRAME_BYTES, frame));
  const seeds = objects.map((object) => segmentFrameSeed(object.uid, object.epoch, object.sequence));
  measure("readSync, frame, and the frame's own checksum", objects, (object, number) => {
    if (!cache.readSync(object, number * RAW_FRAME_BYTES, frame)) return false;
    return isIntactRawFrame(frame, 0, number, seeds[object.sequence - 1]);
  });
  await cache.close();
} finally {
  await fs.rm(directory, { recursive: true, force: true });
}

async function fill(cache: BlockCache, object: ObjectIdentity): Promise<void> {
  const body = Buffer.alloc(SEGMENT_BYTES, object.sequence);
  const seed = segmentFrameSeed(object.uid, object.epoch, object.sequence);
  for (let number = 0; number < FRAMES; number += 1) sealRawFrame(body, number * RAW_FRAME_BYTES, number, seed);
  for (let part = 0; part * PART_BYTES < body.length; part += 1) {
    const bytes = body.subarray(part * PART_BYTES, (part + 1) * PART_BYTES);
    while (!cache.insert(object, part, bytes)) await cache.settled();
  }
  await cache.settled();
}

function measure(
  name: string,
  objects: readonly ObjectIdentity[],
  read: (object: ObjectIdentity, number: number) => boolean,
): void {
  const random = new SeededRandom(1);
  const run = (count: number): { wallMs: number; cpuMs: number } => {
    const started = performance.now();
    const before = process.cpuUsage();
    for (let turn = 0; turn < count; turn += 1) {
      const object = objects[random.below(objects.length)];
      if (!read(object, random.below(FRAMES - 1))) throw new Error(`${name}: a miss`);
    }
    const { user, system } = process.cpuUsage(before);
    return { wallMs: performance.now() - started, cpuMs: (user + system) / 1000 };
  };
  run(READS / 10);
  const runs = [run(READS), run(READS), run(READS)];
  const rate = (ms: number): string => `${Math.round((READS / ms) * 1000).toLocaleString("en-US")}/s`;
  const wall = rate(Math.min(...runs.map(({ wallMs }) => wallMs)));
  const cpu = rate(Math.min(...runs.map(({ cpuMs }) => cpuMs)));
  print(`${wall} (processor time: ${cpu}) ${name}`);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
