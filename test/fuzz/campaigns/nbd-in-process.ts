/**
 * NBD requests by the million through one Transmission after another, in process: streams of valid and invalid requests
 * in pieces of any size, connections that end well, in the midst of a request, or in garbage. Every reply is held
 * against the protocol's, a neighbour on the same pool of memory must be served throughout, and memory must not grow.
 */
import assert from "node:assert/strict";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { MemoryDevice } from "../../../src/block/memory-device.ts";
import { SlabPool } from "../../../src/nbd/slab-pool.ts";
import { Transmission } from "../../../src/nbd/transmission.ts";
import { MemoryConnection } from "../../nbd/memory-connection.ts";
import { replies, request } from "../../nbd/frames.ts";
import { settledBytes } from "../memory-growth.ts";
import { type FrameStream, frameStream, ReplyChecker } from "../nbd-frames.ts";

const SIZE_BYTES = 1024 * 1024;
const FRAMES_PER_STREAM = 4096;
const STREAMS = 32;
const WARM_UP_ROUNDS = 4;

export interface FramesReport {
  frames: number;
  connections: number;
  growthBytes: number;
}

const region = { sizeBytes: SIZE_BYTES, offset: 0, length: SIZE_BYTES / 2 };

export async function manyFrames(options: { seed: number; frames: number }): Promise<FramesReport> {
  const pool = new SlabPool();
  const device = new MemoryDevice({ sizeBytes: SIZE_BYTES, blockSizeBytes: 1 });
  const neighbour = new Neighbour(device, pool);
  const report = { frames: 0, connections: 0, growthBytes: 0 };
  const random = new SeededRandom(options.seed);
  const shape = { frames: FRAMES_PER_STREAM, flushEvery: 50, payloadBytes: 1024 };
  // Made once, so that what grows is not the garbage of making them.
  const streams = Array.from({ length: STREAMS }, () => frameStream(random, region, shape));
  let settled: number | undefined;
  while (report.frames < options.frames) {
    const stream = streams[report.connections % STREAMS];
    await oneConnection(device, pool, stream, random);
    report.frames += stream.frames;
    report.connections += 1;
    if (report.connections % STREAMS === 0) await neighbour.check();
    // What the first streams allocated is what any allocate: from there on memory is held against it.
    if (report.connections === STREAMS * WARM_UP_ROUNDS) settled = settledBytes();
  }
  await neighbour.close();
  const endBytes = settledBytes();
  report.growthBytes = endBytes - (settled ?? endBytes);
  return report;
}

async function oneConnection(
  device: MemoryDevice,
  pool: SlabPool,
  stream: FrameStream,
  random: SeededRandom,
): Promise<void> {
  const connection = new MemoryConnection();
  const served = new Transmission(connection, device, { pool });
  const ending = random.below(3);
  for (let at = 0; at < stream.bytes.length;) {
    const length = random.below(16) === 0 ? 1 + random.below(64) : 1 + random.below(128 * 1024);
    connection.feed(stream.bytes.subarray(at, at + length));
    at += length;
  }
  for (let turn = 0; connection.unreceivedBytes > 0 || turn < 2; turn += 1) {
    assert.ok(turn < 100_000, "a connection stands still");
    await new Promise((resolve) => setImmediate(resolve));
  }
  const checker = new ReplyChecker(stream);
  checker.take(connection.sent);
  assert.ok(checker.isComplete, `${checker.answered} of ${stream.frames} requests were answered`);
  if (ending === 0) connection.feed(random.bytes(28));
  else if (ending === 1) connection.feed(request({ type: 1, cookie: 1n, payload: Buffer.alloc(99) }).subarray(0, 60));
  else connection.feed(request({ type: 2, cookie: 1n }));
  connection.feedEnd();
  const { reason } = await served.closed;
  assert.equal(reason, ["protocol", "end", "disconnect"][ending]);
  assert.equal(served.counters().heldBytes, 0, "memory is held for a connection that is gone");
}

/** A client that writes and reads its own half of the device on one connection, for the whole time. */
class Neighbour {
  readonly #connection = new MemoryConnection();
  readonly #served: Transmission;
  readonly #random = new SeededRandom(77);
  #seenBytes = 0;

  constructor(device: MemoryDevice, pool: SlabPool) {
    this.#served = new Transmission(this.#connection, device, { pool });
  }

  async check(): Promise<void> {
    const offset = BigInt(SIZE_BYTES / 2 + 4096 * this.#random.below(127));
    const payload = this.#random.bytes(4096);
    this.#connection.feed(request({ type: 1, offset, payload, cookie: 1n }));
    this.#connection.feed(request({ type: 0, offset, length: 4096, cookie: 2n }));
    const expected = 16 + 16 + 4096;
    for (let turn = 0; this.#connection.sent.length < this.#seenBytes + expected; turn += 1) {
      assert.ok(turn < 1000, "the neighbour is not served");
      await new Promise((resolve) => setImmediate(resolve));
    }
    const [written, read] = replies(this.#connection.sent.subarray(this.#seenBytes), new Map([[2n, 4096]]));
    assert.deepEqual([written.error, read.error], [0, 0]);
    assert.ok(read.payload.equals(payload), "the neighbour reads other bytes than it wrote");
    this.#seenBytes += expected;
  }

  async close(): Promise<void> {
    await this.#served.destroy();
  }
}
