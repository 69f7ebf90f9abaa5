/** Slices of the long runs of NBD requests (campaigns.ts), and proof that their checker sees what is wrong. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { manyFrames } from "./campaigns/nbd-in-process.ts";
import { manySocketFrames } from "./campaigns/nbd-sockets.ts";
import { frameStream, ReplyChecker } from "./nbd-frames.ts";

test("valid and invalid requests in any pieces are each answered as the protocol says, and neighbours are served", async () => {
  const { frames, connections } = await manyFrames({ seed: 1, frames: 131_072 });
  assert.deepEqual([frames, connections], [131_072, 32]);
});

test("the server goes on serving others beside clients that send nonsense and break off", async () => {
  const { frames, readBack } = await manySocketFrames({ seed: 1, frames: 30_000 });
  assert.ok(frames >= 30_000 && readBack > 0);
});

test("a reply with another error, to another request, or given twice, is noticed", () => {
  const region = { sizeBytes: 65_536, offset: 0, length: 65_536 };
  const stream = frameStream(new SeededRandom(1), region, { frames: 8, flushEvery: 4, payloadBytes: 64 });
  const reply = (cookie: number, error: number): Buffer => {
    const bytes = Buffer.alloc(16 + (error === 0 ? (stream.readLengths[cookie] ?? 0) : 0));
    bytes.writeUInt32BE(0x67446698, 0);
    bytes.writeUInt32BE(error, 4);
    bytes.writeUInt32BE(0x5eed_0000, 8);
    bytes.writeUInt32BE(cookie, 12);
    return bytes;
  };
  const right = Array.from(stream.errors, (error, cookie) => reply(cookie, error));
  const whole = new ReplyChecker(stream);
  for (const byte of Buffer.concat(right)) whole.take(Buffer.from([byte]));
  assert.ok(whole.isComplete);
  assert.throws(() => new ReplyChecker(stream).take(reply(0, stream.errors[0] + 1)), /was answered/);
  assert.throws(() => new ReplyChecker(stream).take(reply(99, 0)), /no reply/);
  assert.throws(() => new ReplyChecker(stream).take(Buffer.concat([right[0], right[0]])), /no reply/);
});
