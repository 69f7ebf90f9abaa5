/**
 * The contract of BlockDevice as tests, run on every implementation: blockDeviceSuite("memory", open).
 * Random operations are held against a plain array, by a seed that is printed with a failure.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { AssertionError } from "../../src/base/assert.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import type { BlockDevice } from "../../src/block/device.ts";

export interface OpenedDevice {
  /** New and empty; at least 64 blocks, at most 64 MiB are touched. */
  device: BlockDevice;
  /** Removes what stood under the device, which is closed by then. */
  cleanup(): Promise<void>;
}

type Open = () => Promise<OpenedDevice>;

export function blockDeviceSuite(name: string, open: Open): void {
  describe(`block device: ${name}`, () => {
    dataTests(open);
    zeroTests(open);
    concurrencyTests(open);
    edgeTests(open);
  });
}

async function withDevice(open: Open, run: (device: BlockDevice) => Promise<void>): Promise<void> {
  const { device, cleanup } = await open();
  try {
    await run(device);
  } finally {
    await device.close();
    await cleanup();
  }
}

async function readAt(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const target = Buffer.alloc(length, 0xa5);
  await device.read(offset, target);
  return target;
}

function dataTests(open: Open): void {
  test("a new device reads as zeroes, whatever the target held", () =>
    withDevice(open, async (device) => {
      const unit = device.blockSizeBytes;
      assert.ok((await readAt(device, 0, unit * 16)).every((byte) => byte === 0));
      assert.ok((await readAt(device, device.sizeBytes - unit, unit)).every((byte) => byte === 0));
    }));

  test("random operations leave what a plain array holds", () =>
    withDevice(open, async (device) => {
      for (const seed of [1, 2, 3]) await compareWithArray(device, seed);
    }));

  test("the last block can be written and read", () =>
    withDevice(open, async (device) => {
      const unit = device.blockSizeBytes;
      const content = new SeededRandom(5).bytes(unit);
      await device.write(device.sizeBytes - unit, content, true);
      await device.flush();
      assert.deepEqual(await readAt(device, device.sizeBytes - unit, unit), content);
    }));

  test("a write keeps nothing of its source after it has completed", () =>
    withDevice(open, async (device) => {
      const content = new SeededRandom(6).bytes(device.blockSizeBytes * 4);
      const source = Buffer.from(content);
      await device.write(0, source, false);
      source.fill(0xee);
      await device.flush();
      assert.deepEqual(await readAt(device, 0, content.length), content);
    }));
}

function zeroTests(open: Open): void {
  for (const operation of ["trim", "writeZeroes"] as const) {
    test(`${operation} makes its range, and nothing beside it, read as zeroes`, () =>
      withDevice(open, async (device) => {
        const unit = device.blockSizeBytes;
        const content = new SeededRandom(7).bytes(unit * 32);
        await device.write(0, content, false);
        await device[operation](unit * 5, unit * 9, operation === "trim");
        content.fill(0, unit * 5, unit * 14);
        assert.deepEqual(await readAt(device, 0, content.length), content);
        await device.flush();
        assert.deepEqual(await readAt(device, 0, content.length), content);
      }));

    test(`${operation} of the whole device is possible, and writes after it stand`, () =>
      withDevice(open, async (device) => {
        const unit = device.blockSizeBytes;
        const content = new SeededRandom(8).bytes(unit * 3);
        await device.write(unit, content, false);
        await device[operation](0, device.sizeBytes, false);
        assert.ok((await readAt(device, 0, unit * 8)).every((byte) => byte === 0));
        await device.write(unit * 2, content, false);
        assert.deepEqual(await readAt(device, unit * 2, content.length), content);
      }));
  }
}

function concurrencyTests(open: Open): void {
  test("requests side by side on different blocks do not disturb each other", () =>
    withDevice(open, async (device) => {
      const unit = device.blockSizeBytes;
      const contents = Array.from({ length: 32 }, (_, index) => new SeededRandom(100 + index).bytes(unit));
      await Promise.all([
        ...contents.map(async (content, index) => device.write(index * unit, content, index % 3 === 0)),
        device.flush(),
      ]);
      const targets = contents.map(() => Buffer.alloc(unit));
      await Promise.all(targets.map(async (target, index) => device.read(index * unit, target)));
      assert.deepEqual(targets, contents);
    }));

  test("of overlapping writes in flight, each block is one of them, whole", () =>
    withDevice(open, async (device) => {
      const unit = device.blockSizeBytes;
      const values = Array.from({ length: 16 }, (_, index) => index + 1);
      await Promise.all(values.map(async (value) => device.write(0, Buffer.alloc(unit * 8, value), false)));
      const after = await readAt(device, 0, unit * 8);
      for (let block = 0; block < 8; block += 1) {
        const bytes = after.subarray(block * unit, (block + 1) * unit);
        assert.ok(values.includes(bytes[0]), "a block holds something nobody wrote");
        assert.ok(
          bytes.every((byte) => byte === bytes[0]),
          "a block is torn",
        );
      }
    }));

  test("a read that starts after a write has completed sees it, also under load", () =>
    withDevice(open, async (device) => {
      const unit = device.blockSizeBytes;
      const worker = async (lane: number): Promise<void> => {
        for (let round = 1; round <= 40; round += 1) {
          const content = Buffer.alloc(unit, (lane * 40 + round) % 256);
          await device.write(lane * unit, content, false);
          if (round % 16 === 0) await device.flush();
          assert.deepEqual(await readAt(device, lane * unit, unit), content);
        }
      };
      await Promise.all(Array.from({ length: 8 }, (_, lane) => worker(lane)));
    }));
}

function edgeTests(open: Open): void {
  test("requests outside the contract are bugs of the caller", () =>
    withDevice(open, async (device) => {
      const unit = device.blockSizeBytes;
      const end = device.sizeBytes;
      const calls: (() => unknown)[] = [
        () => device.read(end, Buffer.alloc(unit)),
        () => device.read(end - unit, Buffer.alloc(unit * 2)),
        () => device.write(end, Buffer.alloc(unit), false),
        () => device.trim(end - unit, unit * 2, false),
        () => device.writeZeroes(end, unit, false),
        () => device.read(-unit, Buffer.alloc(unit)),
      ];
      if (unit > 1)
        calls.push(
          () => device.read(1, Buffer.alloc(unit)),
          () => device.write(0, Buffer.alloc(1), false),
        );
      for (const call of calls) await assert.rejects(async () => call(), AssertionError);
    }));

  test("close can be called twice", async () => {
    const { device, cleanup } = await open();
    await device.write(0, Buffer.alloc(device.blockSizeBytes, 1), false);
    await device.close();
    await device.close();
    await cleanup();
  });
}

async function compareWithArray(device: BlockDevice, seed: number): Promise<void> {
  const random = new SeededRandom(seed);
  const unit = device.blockSizeBytes;
  const units = Math.min(device.sizeBytes / unit, 64 * Math.max(1, 4096 / unit));
  const model = await readAt(device, 0, units * unit);
  for (let step = 0; step < 400; step += 1) {
    const from = random.below(units);
    const count = 1 + random.below(Math.min(units - from, (8 * 4096) / unit));
    const [offset, length, fua] = [from * unit, count * unit, random.below(4) === 0];
    const where = `seed=${seed} step=${step} offset=${offset} length=${length}`;
    const choice = random.below(12);
    if (choice < 5) {
      const content = random.bytes(length);
      await device.write(offset, content, fua);
      content.copy(model, offset);
    } else if (choice < 7) {
      await device.trim(offset, length, fua);
      model.fill(0, offset, offset + length);
    } else if (choice < 9) {
      await device.writeZeroes(offset, length, fua);
      model.fill(0, offset, offset + length);
    } else if (choice < 10) await device.flush();
    else assert.ok((await readAt(device, offset, length)).equals(model.subarray(offset, offset + length)), where);
  }
  assert.ok((await readAt(device, 0, model.length)).equals(model), `seed=${seed} at the end`);
}
