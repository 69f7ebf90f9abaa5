/** What a request gets for an answer, in which order, and what it does to the device. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import type { BlockDevice } from "../../src/block/device.ts";
import type { FaultPlan } from "../../src/block/faulty-device.ts";
import { FaultyDevice } from "../../src/block/faulty-device.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import type { TransmissionOptions } from "../../src/nbd/transmission.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { replies, request } from "./frames.ts";
import { MemoryConnection, settled } from "./memory-connection.ts";

const READ = 0;
const WRITE = 1;
const DISCONNECT = 2;
const FLUSH = 3;
const TRIM = 4;
const WRITE_ZEROES = 6;
const MIB = 1024 * 1024;

function serve(device: BlockDevice, options: TransmissionOptions = {}) {
  const connection = new MemoryConnection();
  return { connection, transmission: new Transmission(connection, device, options) };
}

function memory(sizeBytes = 16 * MIB): MemoryDevice {
  return new MemoryDevice({ sizeBytes });
}

function planned(inner: BlockDevice, plan: FaultPlan): FaultyDevice {
  return new FaultyDevice(inner, systemClock, plan);
}

/** Feeds the frames, waits, answers [cookie, error] pairs. */
async function errorsOf(device: BlockDevice, frames: Buffer[], options: TransmissionOptions = {}) {
  const { connection, transmission } = serve(device, options);
  connection.feed(Buffer.concat(frames));
  await settled();
  const answers = replies(connection.sent).map(({ cookie, error }) => [cookie, error]);
  await transmission.destroy();
  return answers;
}

describe("requests", () => {
  test("a read is answered, byte for byte, with its cookie and what was written", async () => {
    const { connection, transmission } = serve(memory());
    connection.feed(
      request({ type: WRITE, cookie: 0x0102030405060708n, offset: 4096n, payload: Buffer.alloc(4096, 0x5a) }),
    );
    connection.feed(request({ type: READ, cookie: 0xfffffffffffffffen, offset: 4096n, length: 4096 }));
    await settled();
    const expected = `67446698${"00000000"}0102030405060708${"67446698"}00000000fffffffffffffffe${"5a".repeat(4096)}`;
    assert.equal(connection.sent.toString("hex"), expected);
    await transmission.destroy();
  });

  test("every range outside the device has its own error, also where offset and length wrap around 2^64", async () => {
    const cases: [number, bigint, number, number][] = [
      [READ, 16n * 1024n * 1024n, 4096, 22],
      [WRITE_ZEROES, 16n * 1024n * 1024n, 4096, 28],
      [TRIM, 16n * 1024n * 1024n - 4096n, 8192, 22],
      [READ, 0xfffffffffffff000n, 4096, 22],
      [TRIM, 0xfffffffffffff000n, 8192, 22],
      [WRITE_ZEROES, 0xfffffffffffff000n, 0xfffff000, 28],
      [READ, 0x8000000000000000n, 4096, 22],
      [READ, 9007199254740992n, 4096, 22],
    ];
    const frames = cases.map(([type, offset, length], index) =>
      request({ type, offset, length, cookie: BigInt(index) }),
    );
    frames.push(request({ type: WRITE, offset: 16n * 1024n * 1024n, payload: Buffer.alloc(4096), cookie: 100n }));
    const answers = await errorsOf(memory(), frames);
    assert.deepEqual(answers, [...cases.map(([, , , error], index) => [BigInt(index), error]), [100n, 28]]);
  });

  test("unknown commands and flags are refused and the payload of a refused write is skipped", async () => {
    const answers = await errorsOf(memory(), [
      request({ type: 99, cookie: 1n }),
      request({ type: READ, flags: 2, length: 4096, cookie: 2n }),
      request({ type: WRITE, flags: 0x8000, payload: Buffer.alloc(4096, 0x25), cookie: 3n }),
      request({ type: WRITE_ZEROES, flags: 16, length: 4096, cookie: 4n }),
      request({ type: FLUSH, offset: 1n, cookie: 5n }),
      request({ type: READ, offset: 1n, length: 4096, cookie: 6n }),
      request({ type: WRITE, offset: 0n, payload: Buffer.alloc(100), cookie: 7n }),
      request({ type: FLUSH, cookie: 8n }),
    ]);
    assert.deepEqual(answers, [
      [1n, 22],
      [2n, 22],
      [3n, 22],
      [4n, 22],
      [5n, 22],
      [6n, 22],
      [7n, 22],
      [8n, 0],
    ]);
  });

  test("zero length requests succeed and change nothing", async () => {
    const types = [READ, WRITE, TRIM, WRITE_ZEROES];
    const answers = await errorsOf(
      memory(),
      types.map((type) => request({ type, length: 0, cookie: BigInt(type) })),
    );
    assert.deepEqual(
      answers,
      types.map((type) => [BigInt(type), 0]),
    );
  });

  test("trims and zeroes of 4 GiB - 1 reach a byte-granular device whole", async () => {
    const seen: number[] = [];
    const inner = new MemoryDevice({ sizeBytes: 8 * 1024 * MIB, blockSizeBytes: 1 });
    const device = planned(inner, ({ length }) => {
      seen.push(length);
      return undefined;
    });
    const length = 0xffffffff;
    const answers = await errorsOf(device, [
      request({ type: TRIM, offset: 1n, length, cookie: 1n }),
      request({ type: WRITE_ZEROES, flags: 3, offset: 0n, length, cookie: 2n }),
    ]);
    assert.deepEqual(answers, [
      [1n, 0],
      [2n, 0],
    ]);
    assert.deepEqual(seen, [length, length]);
  });

  test("FUA reaches the device for write, trim and zeroes", async () => {
    const fua: string[] = [];
    const inner = memory();
    const device: BlockDevice = {
      sizeBytes: inner.sizeBytes,
      blockSizeBytes: 4096,
      readOnly: false,
      read: (offset, target) => inner.read(offset, target),
      write: (_offset, _source, flag) => void fua.push(`write ${flag}`),
      trim: (_offset, _length, flag) => void fua.push(`trim ${flag}`),
      writeZeroes: (_offset, _length, flag) => void fua.push(`zeroes ${flag}`),
      flush: () => undefined,
      close: () => inner.close(),
    };
    await errorsOf(device, [
      request({ type: WRITE, flags: 1, payload: Buffer.alloc(4096), cookie: 1n }),
      request({ type: WRITE, flags: 0, payload: Buffer.alloc(4096), cookie: 2n }),
      request({ type: TRIM, flags: 1, length: 4096, cookie: 3n }),
      request({ type: WRITE_ZEROES, flags: 3, length: 4096, cookie: 4n }),
      request({ type: WRITE_ZEROES, flags: 2, length: 4096, cookie: 5n }),
    ]);
    assert.deepEqual(fua, ["write true", "write false", "trim true", "zeroes true", "zeroes false"]);
  });

  test("a read-only device answers EPERM to changes and serves reads and flushes", async () => {
    const answers = await errorsOf(new MemoryDevice({ sizeBytes: MIB, readOnly: true }), [
      request({ type: WRITE, payload: Buffer.alloc(4096), cookie: 1n }),
      request({ type: TRIM, length: 4096, cookie: 2n }),
      request({ type: WRITE_ZEROES, length: 4096, cookie: 3n }),
      request({ type: FLUSH, cookie: 4n }),
    ]);
    assert.deepEqual(answers, [
      [1n, 1],
      [2n, 1],
      [3n, 1],
      [4n, 0],
    ]);
  });

  test("each kind of device error has its number, thrown or rejected", async () => {
    const kinds = [
      ["invalid", 22],
      ["not-found", 5],
      ["conflict", 5],
      ["busy", 5],
      ["in-use", 1],
      ["exhausted", 28],
      ["unavailable", 5],
      ["fenced", 108],
      ["corrupt", 5],
    ] as const;
    for (const [kind, number] of kinds) {
      const rejecting = planned(memory(), () => ({ error: new OperationError(kind, "no") }));
      const throwing = planned(memory(), () => {
        throw new OperationError(kind, "no");
      });
      for (const device of [rejecting, throwing]) {
        const answers = await errorsOf(device, [
          request({ type: READ, length: 4096, cookie: 1n }),
          request({ type: WRITE, payload: Buffer.alloc(4096), cookie: 2n }),
          request({ type: FLUSH, cookie: 3n }),
        ]);
        assert.deepEqual(answers, [
          [1n, number],
          [2n, number],
          [3n, number],
        ]);
      }
    }
  });

  test("a write above 32 MiB is drained and refused, the next request is in step", async () => {
    const { connection, transmission } = serve(memory(64 * MIB));
    connection.feed(request({ type: WRITE, length: 33 * MIB, cookie: 1n }));
    for (let sent = 0; sent < 33; sent += 1) connection.feed(Buffer.alloc(MIB, 0x25));
    connection.feed(request({ type: WRITE, payload: Buffer.alloc(32 * MIB, 7), cookie: 2n }));
    connection.feed(request({ type: READ, length: 33 * MIB, cookie: 3n }));
    await settled();
    assert.deepEqual(
      replies(connection.sent).map(({ cookie, error }) => [cookie, error]),
      [
        [1n, 22],
        [2n, 0],
        [3n, 22],
      ],
    );
    assert.ok(transmission.counters().heldBytes < 80 * MIB);
    await transmission.destroy();
  });

  test("a payload beyond the hard cap and a wrong magic end the connection with a reason", async () => {
    const bad = [
      request({ type: WRITE, length: 0xffffffff, cookie: 1n }),
      request({ magic: 0x25609514, type: READ, cookie: 1n }),
    ];
    for (const frame of bad) {
      const { connection, transmission } = serve(memory());
      connection.feed(frame);
      await settled();
      const end = await transmission.closed;
      assert.equal(end.reason, "protocol");
      assert.notEqual(end.detail, "");
      assert.equal(connection.destroyed, true);
      assert.equal(connection.sent.length, 0);
    }
  });
});

describe("many in flight", () => {
  test("answers go out as requests complete, not as they came", async () => {
    const gates = [Promise.withResolvers<void>(), Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const device = planned(memory(), ({ operation, offset }) =>
      operation === "read" ? { hold: gates[offset / 4096].promise } : undefined,
    );
    const { connection, transmission } = serve(device);
    const lengths = new Map([0n, 1n, 2n].map((cookie) => [cookie, 4096]));
    for (const cookie of lengths.keys())
      connection.feed(request({ type: READ, offset: cookie * 4096n, length: 4096, cookie }));
    connection.feed(request({ type: FLUSH, cookie: 9n }));
    await settled();
    assert.equal(transmission.counters().inFlight, 3);
    for (const index of [2, 0, 1]) {
      gates[index].resolve();
      await settled();
    }
    assert.deepEqual(
      replies(connection.sent, lengths).map(({ cookie }) => cookie),
      [9n, 2n, 0n, 1n],
    );
    await transmission.destroy();
  });

  test("a payload stays as it came while the device has it and thousands of others go by", async () => {
    const inner = memory();
    const gate = Promise.withResolvers<void>();
    const device = planned(inner, ({ operation, offset }) =>
      operation === "write" && offset === 0 ? { hold: gate.promise } : undefined,
    );
    const { connection, transmission } = serve(device);
    connection.feed(request({ type: WRITE, payload: Buffer.alloc(8192, 0x11), cookie: 1n }));
    for (let index = 1; index <= 500; index += 1) {
      connection.feed(request({ type: WRITE, offset: 8192n, payload: Buffer.alloc(4096, 0x22), cookie: 2n }));
      if (index % 50 === 0) await settled();
    }
    gate.resolve();
    await settled();
    const after = Buffer.alloc(8192);
    inner.read(0, after);
    assert.ok(after.equals(Buffer.alloc(8192, 0x11)));
    assert.equal(replies(connection.sent).length, 501);
    await transmission.destroy();
  });

  test("answers to requests that came together leave together", async () => {
    const { connection, transmission } = serve(memory());
    await settled();
    connection.feed(
      Buffer.concat(
        Array.from({ length: 14 }, (_, index) => request({ type: READ, length: 4096, cookie: BigInt(index) })),
      ),
    );
    await settled();
    assert.equal(connection.writes, 1);
    await transmission.destroy();
  });

  test("the answers to changes leave after the device has committed their batch", async () => {
    const inner = memory();
    const seen: string[] = [];
    const connection = new MemoryConnection();
    const device: BlockDevice = Object.assign(Object.create(inner) as BlockDevice, {
      sizeBytes: inner.sizeBytes,
      blockSizeBytes: inner.blockSizeBytes,
      readOnly: false,
      read: inner.read.bind(inner),
      trim: inner.trim.bind(inner),
      write: (offset: number, source: Buffer, fua: boolean) => {
        seen.push(`write ${offset / 4096}, ${connection.sent.length} bytes sent`);
        return inner.write(offset, source, fua);
      },
      beginBatch: () => seen.push("begin"),
      commitBatch: () => seen.push(`commit, ${connection.sent.length} bytes sent`),
    });
    const transmission = new Transmission(connection, device);
    const frames = [1n, 2n].map((cookie) =>
      request({ type: WRITE, cookie, offset: cookie * 4096n, payload: Buffer.alloc(4096, 7) }),
    );
    connection.feed(Buffer.concat(frames));
    await settled();
    assert.deepEqual(seen.slice(seen.indexOf("write 1, 0 bytes sent") - 1), [
      "begin",
      "write 1, 0 bytes sent",
      "write 2, 0 bytes sent",
      "commit, 0 bytes sent",
    ]);
    assert.equal(connection.sent.length, 32);
    await transmission.destroy();
  });

  test("a batch that cannot be committed fails its changes, and its reads alone are answered", async () => {
    const inner = memory();
    const device: BlockDevice = Object.assign(Object.create(inner) as BlockDevice, {
      sizeBytes: inner.sizeBytes,
      blockSizeBytes: inner.blockSizeBytes,
      readOnly: false,
      read: inner.read.bind(inner),
      write: inner.write.bind(inner),
      trim: inner.trim.bind(inner),
      beginBatch: () => undefined,
      commitBatch: () => {
        throw new OperationError("unavailable", "the journal's disk fails");
      },
    });
    const answers = await errorsOf(device, [
      request({ type: WRITE, cookie: 1n, offset: 0n, payload: Buffer.alloc(4096, 7) }),
      request({ type: TRIM, cookie: 2n, offset: 4096n, length: 4096 }),
      request({ type: READ, cookie: 3n, offset: 8192n, length: 0 }),
      request({ type: WRITE, cookie: 4n, offset: 1n << 50n, payload: Buffer.alloc(4096, 7) }),
    ]);
    assert.deepEqual(answers, [
      [1n, 5],
      [2n, 5],
      [3n, 0],
      [4n, 28],
    ]);
  });

  test("a failed read sends no payload, and neighbours are whole", async () => {
    const device = planned(memory(), ({ offset }) =>
      offset === 4096 ? { hold: systemClock.yield(), error: new OperationError("corrupt", "rotten") } : undefined,
    );
    const { connection, transmission } = serve(device);
    const cookies = [0n, 1n, 2n];
    connection.feed(
      Buffer.concat(cookies.map((cookie) => request({ type: READ, offset: cookie * 4096n, length: 4096, cookie }))),
    );
    await settled();
    const got = replies(connection.sent, new Map(cookies.map((cookie) => [cookie, 4096])));
    assert.deepEqual(
      new Map(got.map(({ cookie, error }) => [cookie, error])),
      new Map([
        [0n, 0],
        [1n, 5],
        [2n, 0],
      ]),
    );
    await transmission.destroy();
  });
});

describe("ends", () => {
  test("DISC and a closed client: what is in flight is answered, then the connection ends", async () => {
    for (const how of ["disconnect", "end"] as const) {
      const gate = Promise.withResolvers<void>();
      const { connection, transmission } = serve(planned(memory(), () => ({ hold: gate.promise })));
      connection.feed(request({ type: WRITE, payload: Buffer.alloc(4096), cookie: 1n }));
      await settled();
      if (how === "disconnect") connection.feed(request({ type: DISCONNECT, cookie: 2n }));
      else connection.feedEnd();
      await settled();
      assert.equal(connection.ended, false);
      gate.resolve();
      assert.equal((await transmission.closed).reason, how);
      assert.deepEqual(
        replies(connection.sent).map(({ cookie, error }) => [cookie, error]),
        [[1n, 0]],
      );
    }
  });

  test("destroy resolves only when the device has settled what it had", async () => {
    const gate = Promise.withResolvers<void>();
    const { connection, transmission } = serve(planned(memory(), () => ({ hold: gate.promise })));
    connection.feed(request({ type: WRITE, payload: Buffer.alloc(4096), cookie: 1n }));
    await settled();
    let destroyed = false;
    const over = transmission.destroy().then(() => {
      destroyed = true;
    });
    await settled();
    assert.equal(destroyed, false);
    assert.equal(connection.destroyed, true);
    gate.resolve();
    await over;
    assert.equal(connection.sent.length, 0);
    assert.equal(transmission.counters().heldBytes, 0);
    await transmission.drain();
  });

  test("draining a client answers what runs, then ESHUTDOWN to what comes", async () => {
    const gate = Promise.withResolvers<void>();
    const inner = memory();
    const { connection, transmission } = serve(planned(inner, () => ({ hold: gate.promise })));
    connection.feed(request({ type: WRITE, payload: Buffer.alloc(4096, 1), cookie: 1n }));
    await settled();
    let drained = false;
    const over = transmission.drain().then(() => {
      drained = true;
    });
    connection.feed(request({ type: WRITE, payload: Buffer.alloc(4096, 2), cookie: 2n }));
    await settled();
    assert.equal(drained, false);
    gate.resolve();
    await over;
    connection.feed(request({ type: FLUSH, cookie: 3n }));
    await settled();
    assert.deepEqual(
      replies(connection.sent).map(({ cookie, error }) => [cookie, error]),
      [
        [2n, 108],
        [1n, 0],
        [3n, 108],
      ],
    );
    const after = Buffer.alloc(4096);
    inner.read(0, after);
    assert.equal(after[0], 1);
    await transmission.destroy();
  });

  test("draining the kernel's socket leaves later requests unread and unanswered", async () => {
    const { connection, transmission } = serve(memory(), { onDrain: "stop" });
    connection.feed(request({ type: FLUSH, cookie: 1n }));
    await settled();
    await transmission.drain();
    connection.feed(request({ type: WRITE, payload: Buffer.alloc(4096), cookie: 2n }));
    await settled();
    assert.deepEqual(
      replies(connection.sent).map(({ cookie }) => cookie),
      [1n],
    );
    assert.equal(transmission.counters().requests, 1);
    await transmission.destroy();
  });

  test("a socket that breaks ends the transmission when the device has settled, with the reason", async () => {
    const gate = Promise.withResolvers<void>();
    const { connection, transmission } = serve(planned(memory(), () => ({ hold: gate.promise })));
    connection.feed(request({ type: READ, length: 4096, cookie: 1n }));
    await settled();
    connection.close(new Error("connection reset"));
    await settled();
    assert.equal(transmission.counters().inFlight, 1);
    gate.resolve();
    assert.deepEqual(await transmission.closed, { reason: "socket", detail: "connection reset" });
    assert.equal(transmission.counters().heldBytes, 0);
  });
});
