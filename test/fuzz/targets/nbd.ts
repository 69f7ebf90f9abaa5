/**
 * Both phases of NBD in process. The transmission is held against a model of the protocol written apart from the
 * server: the same bytes, however they are split, must be answered by exactly the replies the model says, in its order,
 * and leave the device as the model's. A second client of the same pool is served beside it and must see its own data.
 */
import assert from "node:assert/strict";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { OperationError } from "../../../src/base/errors.ts";
import { MemoryDevice } from "../../../src/block/memory-device.ts";
import { performHandshake } from "../../../src/nbd/handshake.ts";
import { SlabPool } from "../../../src/nbd/slab-pool.ts";
import { Transmission } from "../../../src/nbd/transmission.ts";
import { clientFlags, infoData, option, optionReplies, replies, request } from "../../nbd/frames.ts";
import { MemoryConnection } from "../../nbd/memory-connection.ts";
import { NbdModel } from "../nbd-model.ts";
import type { FuzzTarget } from "../target.ts";

const SIZE_BYTES = 64 * 1024;

/** In pieces of sizes that the input itself decides, so that a case is one input and nothing else. */
function feedInPieces(connection: MemoryConnection, input: Buffer): void {
  const random = new SeededRandom(input.length * 31 + (input[0] ?? 0));
  for (let at = 0; at < input.length;) {
    const length = random.below(3) === 0 ? 1 + random.below(40) : 1 + random.below(input.length);
    connection.feed(Buffer.from(input.subarray(at, at + length)));
    at += length;
  }
}

async function turns(until: () => boolean, what: string): Promise<void> {
  for (let turn = 0; turn < 2000; turn += 1) {
    if (until()) return;
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.fail(`${what}: not after 2000 turns`);
}

function handshake(): FuzzTarget {
  const flags = clientFlags(3);
  const seeds = [
    [flags, option(7, infoData("disk", [1, 3, 0]))],
    [flags, option(3), option(6, infoData("")), option(6, infoData("absent")), option(7, infoData("disk"))],
    [clientFlags(0), option(1, Buffer.from("disk")), request({ type: 3, cookie: 9n })],
    [flags, option(5, Buffer.alloc(40)), option(8), option(99, Buffer.alloc(9)), option(2)],
    [clientFlags(1), option(7, infoData("busy")), option(1, Buffer.from("é"))],
  ];
  return {
    name: "nbd-handshake",
    seeds: seeds.map((parts) => Buffer.concat(parts)),
    async run(input) {
      const connection = new MemoryConnection();
      let opened = 0;
      let released = 0;
      const source = {
        list: () => ["disk", "other"],
        open: async (name: string) => {
          if (name === "busy") throw new OperationError("busy", "another one has it");
          if (name !== "disk" && name !== "") return undefined;
          opened += 1;
          return { device: new MemoryDevice({ sizeBytes: SIZE_BYTES }), release: () => void (released += 1) };
        },
      };
      const done = performHandshake(connection, source);
      feedInPieces(connection, input);
      let isOver = false;
      void done.finally(() => (isOver = true));
      for (let turn = 0; turn < 4 && !isOver; turn += 1) await new Promise((resolve) => setImmediate(resolve));
      await turns(() => isOver || connection.unreceivedBytes === 0, "the handshake reads what it was sent");
      connection.feedEnd();
      await turns(() => isOver, "the handshake ends with its client");
      const result = await done;
      assert.equal(opened - released, result === undefined ? 0 : 1, "an export is held by nobody");
      checkHandshakeAnswers(connection.sent, result !== undefined);
      if (result === undefined) {
        assert.ok(connection.ended || connection.destroyed, "the connection stays open");
        return "refused";
      }
      const unread = Buffer.alloc(connection.unreceivedBytes);
      const rest = result.leftover.length + unread.length;
      assert.ok(
        input
          .subarray(input.length - rest)
          .subarray(0, result.leftover.length)
          .equals(result.leftover),
      );
      await result.handle.release();
      return "transmission";
    },
  };
}

/** The greeting, then whole option replies, then perhaps the answer to EXPORT_NAME. */
function checkHandshakeAnswers(sent: Buffer, isNegotiated: boolean): void {
  assert.equal(sent.toString("latin1", 0, 16), "NBDMAGICIHAVEOPT");
  let rest = sent.subarray(18);
  for (;;) {
    const isReply = rest.length >= 20 && rest.readBigUInt64BE(0) === 0x3e889045565a9n;
    if (!isReply) break;
    const end = 20 + rest.readUInt32BE(16);
    assert.equal(optionReplies(rest.subarray(0, end)).length, 1);
    rest = rest.subarray(end);
  }
  assert.ok(rest.length === 0 || (isNegotiated && (rest.length === 10 || rest.length === 134)), `${rest.length} bytes`);
}

function transmission(): FuzzTarget {
  const seeds = [
    [
      request({ type: 1, offset: 512n, payload: new SeededRandom(1).bytes(1024), cookie: 1n }),
      request({ type: 0, offset: 0n, length: 2048, cookie: 2n }),
      request({ type: 3, cookie: 3n }),
      request({ type: 4, offset: 512n, length: 512, cookie: 4n }),
      request({ type: 6, flags: 2, offset: 1024n, length: 512, cookie: 5n }),
      request({ type: 0, offset: 512n, length: 1024, cookie: 6n }),
    ],
    [
      request({ type: 1, flags: 1, offset: 65024n, payload: Buffer.alloc(512, 7), cookie: 0xffff_ffff_ffff_ffffn }),
      request({ type: 1, flags: 0x4000, payload: Buffer.alloc(512, 0x25), cookie: 8n }),
      request({ type: 1, offset: 65024n, payload: Buffer.alloc(1024, 3), cookie: 9n }),
      request({ type: 99, cookie: 10n }),
      request({ type: 6, offset: 0n, length: 0xffff_fe00, cookie: 11n }),
      request({ type: 0, offset: 65024n, length: 512, cookie: 12n }),
      request({ type: 2, cookie: 13n }),
      request({ type: 3, cookie: 14n }),
    ],
  ];
  const pool = new SlabPool();
  return {
    name: "nbd-transmission",
    seeds: seeds.map((parts) => Buffer.concat(parts)),
    async run(input) {
      const device = new MemoryDevice({ sizeBytes: SIZE_BYTES, blockSizeBytes: 512 });
      const model = new NbdModel(SIZE_BYTES, 512);
      const expected = model.answer(input);
      const connection = new MemoryConnection();
      const served = new Transmission(connection, device, { pool });
      const neighbour = new Neighbour(pool);
      feedInPieces(connection, input);
      neighbour.ask();
      const isThrough = (): boolean =>
        expected.end === "end"
          ? connection.unreceivedBytes === 0 && connection.sent.length >= expected.replies.length
          : connection.destroyed || connection.ended;
      await turns(isThrough, "every request is answered");
      connection.feedEnd();
      const end = await served.closed;
      assert.equal(end.reason, expected.end);
      // What was answered before nonsense was met may be lost with the connection, never anything else.
      if (expected.end === "protocol") {
        assert.ok(expected.replies.subarray(0, connection.sent.length).equals(connection.sent), "a wrong reply");
      } else assert.ok(expected.replies.equals(connection.sent), "not the replies of the protocol");
      const content = Buffer.alloc(SIZE_BYTES);
      device.read(0, content);
      assert.ok(content.equals(model.content), "the device holds something else");
      await neighbour.check();
      assert.equal(served.counters().heldBytes, 0, "memory is still held for a closed connection");
      return end.reason;
    },
  };
}

/** A well-behaved client of its own device, on the same pool of memory. */
class Neighbour {
  readonly #connection = new MemoryConnection();
  readonly #served: Transmission;
  readonly #payload = new SeededRandom(9).bytes(4096);

  constructor(pool: SlabPool) {
    this.#served = new Transmission(this.#connection, new MemoryDevice({ sizeBytes: SIZE_BYTES }), { pool });
  }

  ask(): void {
    this.#connection.feed(request({ type: 1, offset: 8192n, payload: this.#payload, cookie: 1n }));
    this.#connection.feed(request({ type: 0, offset: 8192n, length: 4096, cookie: 2n }));
  }

  async check(): Promise<void> {
    await turns(() => this.#connection.sent.length >= 16 + 16 + 4096, "the neighbour is served");
    const [written, read] = replies(this.#connection.sent, new Map([[2n, 4096]]));
    assert.deepEqual([written.error, read.error], [0, 0]);
    assert.ok(read.payload.equals(this.#payload));
    await this.#served.destroy();
  }
}

export const nbdTargets = { "nbd-handshake": handshake, "nbd-transmission": transmission } as const;
