/** What no input may do: split frames, garbage, floods and clients that do not read. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { FaultyDevice } from "../../src/block/faulty-device.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { SlabPool } from "../../src/nbd/slab-pool.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { replies, request } from "./frames.ts";
import { MemoryConnection, settled } from "./memory-connection.ts";

const MIB = 1024 * 1024;

function script(): { bytes: Buffer; lengths: Map<bigint, number> } {
  const frames = [
    request({ type: 1, offset: 512n, payload: new SeededRandom(1).bytes(1024), cookie: 1n }),
    request({ type: 0, offset: 0n, length: 2048, cookie: 2n }),
    request({ type: 1, flags: 0x4000, payload: Buffer.alloc(512, 0x25), cookie: 3n }),
    request({ type: 4, offset: 512n, length: 512, cookie: 4n }),
    request({ type: 0, offset: 512n, length: 1024, cookie: 5n }),
    request({ type: 3, cookie: 6n }),
  ];
  return {
    bytes: Buffer.concat(frames),
    lengths: new Map([
      [2n, 2048],
      [5n, 1024],
    ]),
  };
}

async function answersTo(pieces: Buffer[], asLeftover = false): Promise<Buffer> {
  const connection = new MemoryConnection();
  const device = new MemoryDevice({ sizeBytes: MIB, blockSizeBytes: 512 });
  const [first, ...rest] = pieces;
  const transmission = new Transmission(connection, device, asLeftover ? { leftover: first } : {});
  for (const piece of asLeftover ? rest : pieces) connection.feed(piece);
  await settled();
  await transmission.destroy();
  return connection.sent;
}

test("requests split at every byte, as leftover of a handshake or not, are answered alike", async () => {
  const { bytes, lengths } = script();
  const whole = await answersTo([bytes]);
  assert.deepEqual(
    replies(whole, lengths).map(({ cookie, error }) => [cookie, error]),
    [
      [1n, 0],
      [2n, 0],
      [3n, 22],
      [4n, 0],
      [5n, 0],
      [6n, 0],
    ],
  );
  for (let at = 1; at < bytes.length; at += 1) {
    const pieces = [bytes.subarray(0, at), bytes.subarray(at)];
    assert.ok((await answersTo(pieces, at % 2 === 0)).equals(whole), `split at ${at}`);
  }
  assert.ok((await answersTo([...bytes].map((byte) => Buffer.from([byte])))).equals(whole), "byte by byte");
});

test("payloads of every size around the receive memory's arrive whole, in pieces of every size", async () => {
  const random = new SeededRandom(3);
  for (const size of [4096, 32768, 61440, 65536, 69632, 131072, MIB, MIB + 4096]) {
    for (const piece of [1400, 65536, MIB]) {
      const connection = new MemoryConnection();
      const device = new MemoryDevice({ sizeBytes: 16 * MIB });
      const slow = new FaultyDevice(device, systemClock, () =>
        random.below(2) === 0 ? { hold: systemClock.yield() } : undefined,
      );
      const transmission = new Transmission(connection, slow);
      const contents = [random.bytes(size), random.bytes(size), random.bytes(4096), random.bytes(size)];
      const offsets = [0, size, 2 * size, 2 * size + 4096];
      const bytes = Buffer.concat(
        contents.map((payload, index) =>
          request({ type: 1, offset: BigInt(offsets[index]), payload, cookie: BigInt(index) }),
        ),
      );
      for (let at = 0; at < bytes.length; at += piece) connection.feed(bytes.subarray(at, at + piece));
      await settled();
      assert.equal(replies(connection.sent).length, 4);
      contents.forEach((content, index) => {
        const after = Buffer.alloc(content.length);
        device.read(offsets[index], after);
        assert.ok(after.equals(content), `size=${size} piece=${piece} index=${index}`);
      });
      await transmission.destroy();
      assert.equal(transmission.counters().heldBytes, 0);
    }
  }
});

test("arbitrary and mutated bytes never crash it, nor hold memory beyond the bound", async () => {
  const { bytes } = script();
  const mutation = fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.nat(255)), { maxLength: 12 });
  const input = fc.oneof(
    fc.uint8Array({ maxLength: 4096 }).map((random) => Buffer.from(random)),
    mutation.map((changes) => {
      const mutated = Buffer.concat([bytes, bytes, bytes]);
      for (const [at, value] of changes) mutated[at] = value;
      return mutated;
    }),
  );
  const pool = new SlabPool();
  await fc.assert(
    fc.asyncProperty(input, fc.integer({ min: 1, max: 700 }), async (garbage, piece) => {
      const connection = new MemoryConnection();
      const device = new MemoryDevice({ sizeBytes: 4 * MIB, blockSizeBytes: 512 });
      const transmission = new Transmission(connection, device, { pool, memoryLimitBytes: 8 * MIB });
      for (let at = 0; at < garbage.length; at += piece) connection.feed(garbage.subarray(at, at + piece));
      await settled();
      assert.ok(transmission.counters().heldBytes <= 48 * MIB);
      await transmission.destroy();
      assert.equal(transmission.counters().heldBytes, 0);
    }),
    { numRuns: 400, seed: 20 },
  );
  assert.ok(pool.keptBytes <= 32 * MIB);
});

test("a client that asks and never reads is held to the bound, and served on when it reads", async () => {
  const connection = new MemoryConnection();
  connection.reading = false;
  const device = new MemoryDevice({ sizeBytes: 64 * MIB });
  const transmission = new Transmission(connection, device);
  const count = 400;
  const ask = (cookie: number) => request({ type: 0, length: 256 * 1024, cookie: BigInt(cookie) });
  connection.feed(Buffer.concat(Array.from({ length: count }, (_, index) => ask(index))));
  await settled();
  assert.ok(transmission.counters().requests < 40);
  assert.ok(transmission.counters().heldBytes < 8 * MIB);
  assert.equal(connection.paused, true);
  connection.feed(ask(count));
  await settled();
  assert.equal(connection.unreceivedBytes, 28);
  connection.reading = true;
  connection.take();
  await settled();
  assert.equal(transmission.counters().requests, count + 1);
  assert.equal(connection.sent.length, (count + 1) * (16 + 256 * 1024));
  await transmission.destroy();
});

test("a connection at its bound goes on when its replies leave at once", async () => {
  const connection = new MemoryConnection();
  const device = new MemoryDevice({ sizeBytes: MIB });
  const transmission = new Transmission(connection, device, { memoryLimitBytes: 1 });
  const reads = Array.from({ length: 50 }, (_, index) => request({ type: 0, length: 4096, cookie: BigInt(index) }));
  connection.feed(Buffer.concat(reads));
  for (let turn = 0; turn < 20; turn += 1) await settled();
  assert.equal(connection.sent.length, 50 * (16 + 4096));
  assert.equal(connection.paused, false);
  await transmission.destroy();
});

test("replies of which the kernel takes a part leave whole and in order", async () => {
  const content = new SeededRandom(3).bytes(MIB);
  for (const nowBytes of [0, 1, 15, 4096, 5000, 300_000]) {
    const connection = new MemoryConnection();
    connection.nowBytes = nowBytes;
    const device = new MemoryDevice({ sizeBytes: MIB });
    device.write(0, content, false);
    const transmission = new Transmission(connection, device);
    const lengths = new Map<bigint, number>();
    for (let round = 0; round < 4; round += 1) {
      const frames: Buffer[] = [];
      for (let index = 0; index < 20; index += 1) {
        const cookie = BigInt(lengths.size);
        const length = 4096 * (1 + (index % 5));
        frames.push(request({ type: 0, offset: cookie * 4096n, length, cookie }));
        lengths.set(cookie, length);
      }
      connection.feed(Buffer.concat(frames));
      await settled();
    }
    const answers = replies(connection.sent, lengths);
    assert.deepEqual(
      answers.map(({ cookie }) => cookie),
      [...lengths.keys()],
    );
    for (const { cookie, payload } of answers) {
      const start = Number(cookie) * 4096;
      assert.ok(payload.equals(content.subarray(start, start + payload.length)), `${nowBytes} at once, ${cookie}`);
    }
    assert.ok(transmission.counters().heldBytes <= 512 * 1024);
    await transmission.destroy();
  }
});

test("a flood of writes into a device that hangs stops at the memory bound and goes on afterwards", async () => {
  const gate = Promise.withResolvers<void>();
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes: 64 * MIB }), systemClock, () => ({
    hold: gate.promise,
  }));
  const connection = new MemoryConnection();
  const transmission = new Transmission(connection, device, { memoryLimitBytes: 8 * MIB });
  const frame = request({ type: 1, payload: Buffer.alloc(MIB), cookie: 1n });
  for (let sent = 0; sent < 32; sent += 1) connection.feed(frame);
  await settled();
  assert.ok(transmission.counters().heldBytes < 12 * MIB);
  assert.ok(transmission.counters().inFlight <= 8);
  gate.resolve();
  await settled();
  await settled();
  assert.equal(replies(connection.sent).length, 32);
  await transmission.destroy();
});

test("a flood of small requests into a device that hangs stops at the bound of requests", async () => {
  const gate = Promise.withResolvers<void>();
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes: MIB }), systemClock, () => ({ hold: gate.promise }));
  const connection = new MemoryConnection();
  const transmission = new Transmission(connection, device, { inFlightLimit: 100 });
  connection.feed(
    Buffer.concat(Array.from({ length: 5000 }, (_, index) => request({ type: 3, cookie: BigInt(index) }))),
  );
  await settled();
  assert.equal(transmission.counters().inFlight, 100);
  gate.resolve();
  for (let turn = 0; turn < 20; turn += 1) await settled();
  assert.equal(replies(connection.sent).length, 5000);
  await transmission.destroy();
});

test("connections of one pool share its bound, and each goes on when another gives memory back", async () => {
  const pool = new SlabPool({ limitBytes: 8 * MIB });
  const gate = Promise.withResolvers<void>();
  const clients = Array.from({ length: 4 }, () => {
    const device = new FaultyDevice(new MemoryDevice({ sizeBytes: MIB }), systemClock, () => ({ hold: gate.promise }));
    const connection = new MemoryConnection();
    return { connection, transmission: new Transmission(connection, device, { pool }) };
  });
  const frame = request({ type: 1, payload: Buffer.alloc(MIB), cookie: 1n });
  for (let sent = 0; sent < 16; sent += 1) for (const { connection } of clients) connection.feed(frame);
  await settled();
  assert.ok(pool.usedBytes < 16 * MIB, `${pool.usedBytes} bytes in use`);
  for (const { transmission } of clients) assert.ok(transmission.counters().inFlight >= 1);
  gate.resolve();
  for (let turn = 0; turn < 10; turn += 1) await settled();
  for (const { connection, transmission } of clients) {
    assert.equal(replies(connection.sent).length, 16);
    await transmission.destroy();
  }
  assert.equal(pool.usedBytes, 0);
});
