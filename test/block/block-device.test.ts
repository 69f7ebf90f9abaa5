/** The contract suite on the devices of src/block, and what each adds to it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { ByteGranularDevice } from "../../src/block/byte-granular.ts";
import { FaultyDevice } from "../../src/block/faulty-device.ts";
import { MeasuredDevice } from "../../src/block/measured-device.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { blockDeviceSuite } from "../suites/block-device-suite.ts";

const MIB = 1024 * 1024;

function memory(blockSizeBytes = 4096): MemoryDevice {
  return new MemoryDevice({ sizeBytes: 16 * MIB, blockSizeBytes });
}

/** Answers every request by a promise, after a turn or several. */
function slow(inner: MemoryDevice): FaultyDevice {
  const random = new SeededRandom(11);
  const turns = async () => {
    for (let left = random.below(4); left > 0; left -= 1) await systemClock.yield();
  };
  return new FaultyDevice(inner, systemClock, () => ({ hold: turns() }));
}

const nothing = async (): Promise<void> => {};

blockDeviceSuite("memory, 4096", async () => ({ device: memory(), cleanup: nothing }));
blockDeviceSuite("memory, 512", async () => ({ device: memory(512), cleanup: nothing }));
blockDeviceSuite("slow memory", async () => ({ device: slow(memory()), cleanup: nothing }));
blockDeviceSuite("byte-granular", async () => ({ device: new ByteGranularDevice(memory()), cleanup: nothing }));
blockDeviceSuite("byte-granular over a slow device", async () => ({
  device: new ByteGranularDevice(slow(memory())),
  cleanup: nothing,
}));
blockDeviceSuite("measured", async () => ({
  device: new MeasuredDevice(slow(memory()), systemClock, { completed() {} }),
  cleanup: nothing,
}));

test("a memory device of 16 TiB costs what was written, and gives back what was trimmed", () => {
  const device = new MemoryDevice({ sizeBytes: 16 * 2 ** 40 });
  device.write(8 * 2 ** 40, Buffer.alloc(8192, 1), false);
  device.write(2 ** 40 - 4096, Buffer.alloc(8192, 1), false);
  assert.equal(device.allocatedBytes, 3 * MIB);
  device.trim(0, device.sizeBytes, false);
  assert.equal(device.allocatedBytes, 0);
});

test("a read-only memory device refuses every change", () => {
  const device = new MemoryDevice({ sizeBytes: MIB, readOnly: true });
  const refused = (error: unknown) => error instanceof OperationError && error.kind === "in-use";
  assert.throws(() => device.write(0, Buffer.alloc(4096), false), refused);
  assert.throws(() => device.trim(0, 4096, false), refused);
  assert.throws(() => device.writeZeroes(0, 4096, false), refused);
});

test("small writes into one block at the same time are all kept", async () => {
  const device = new ByteGranularDevice(slow(memory()));
  await Promise.all(
    Array.from({ length: 64 }, async (_, index) => device.write(index * 60, Buffer.alloc(60, index + 1), false)),
  );
  const after = Buffer.alloc(4096);
  await device.read(0, after);
  for (let index = 0; index < 64; index += 1) {
    assert.ok(
      after.subarray(index * 60, index * 60 + 60).every((byte) => byte === index + 1),
      `write ${index} is lost`,
    );
  }
});

test("a small write and a whole-block write at the same time end as one after the other", async () => {
  for (let seed = 0; seed < 50; seed += 1) {
    const device = new ByteGranularDevice(slow(memory()));
    const whole = async () => device.write(0, Buffer.alloc(8192, 1), false);
    const small = async () => device.write(4000, Buffer.alloc(200, 2), false);
    await Promise.all(seed % 2 === 0 ? [whole(), small()] : [small(), whole()]);
    const after = Buffer.alloc(8192);
    await device.read(0, after);
    assert.ok(after.subarray(0, 4000).every((byte) => byte === 1) && after.subarray(4200).every((byte) => byte === 1));
  }
});

test("a failed read-modify-write lets the next one in", async () => {
  let failures = 1;
  const inner = new FaultyDevice(memory(), systemClock, ({ operation }) => {
    if (operation !== "write" || failures === 0) return undefined;
    failures -= 1;
    return { error: new OperationError("unavailable", "no luck") };
  });
  const device = new ByteGranularDevice(inner);
  const first = device.write(1, Buffer.alloc(1, 1), false);
  const second = device.write(2, Buffer.alloc(1, 2), false);
  await assert.rejects(async () => first, OperationError);
  await second;
  const after = Buffer.alloc(4);
  await device.read(0, after);
  assert.deepEqual([...after], [0, 0, 2, 0]);
});

test("an aligned request to an idle byte-granular device completes at once", () => {
  const device = new ByteGranularDevice(memory());
  assert.equal(device.write(4096, Buffer.alloc(4096, 1), false), undefined);
  assert.equal(device.read(4096, Buffer.alloc(4096)), undefined);
  assert.equal(device.read(100, Buffer.alloc(10)), undefined);
  assert.equal(device.trim(0, 8192, false), undefined);
});

test("a trim of parts of blocks clears those parts alone and trims what lies between", async () => {
  const seen: string[] = [];
  const inner = new FaultyDevice(memory(), systemClock, ({ operation, offset, length }) => {
    seen.push(`${operation} ${offset} ${length}`);
    return undefined;
  });
  const device = new ByteGranularDevice(inner);
  await device.write(0, Buffer.alloc(4096 * 6, 9), false);
  seen.length = 0;
  await device.trim(100, 4096 * 4, true);
  assert.ok(seen.includes(`trim 4096 ${4096 * 3}`));
  const after = Buffer.alloc(4096 * 6);
  await device.read(0, after);
  const expected = Buffer.alloc(4096 * 6, 9).fill(0, 100, 100 + 4096 * 4);
  assert.deepEqual(after, expected);
});

test("the observer of a measured device hears of every request, its bytes and its failure", async () => {
  const heard: string[] = [];
  const inner = new FaultyDevice(memory(), systemClock, ({ operation }) =>
    operation === "trim" ? { error: new OperationError("exhausted", "full") } : undefined,
  );
  const device = new MeasuredDevice(inner, systemClock, {
    completed: (operation, bytes, durationMs, failed) => {
      assert.ok(durationMs >= 0);
      heard.push(`${operation} ${bytes} ${failed}`);
    },
  });
  await device.write(0, Buffer.alloc(4096), false);
  await device.read(0, Buffer.alloc(8192));
  await device.flush();
  await assert.rejects(async () => device.trim(0, 4096, false), OperationError);
  await device.writeZeroes(0, 4096, false);
  assert.deepEqual(heard, [
    "write 4096 false",
    "read 8192 false",
    "flush 0 false",
    "trim 4096 true",
    "write-zeroes 4096 false",
  ]);
});
