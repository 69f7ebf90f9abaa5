/**
 * NBD requests by the million over unix sockets to the program itself: `s3block server` in a process of its own, its
 * engine on a directory store. Several clients send streams of valid and invalid requests, break off in the midst of
 * them or send garbage, and come again; one well-behaved client writes and reads back beside them all the time. Every
 * reply is held against the protocol's, and the server's memory must not grow.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { Playground } from "../../cli/program.ts";
import { clientFlags, infoData, option, request } from "../../nbd/frames.ts";
import { residentBytes } from "../memory-growth.ts";
import { type FrameStream, frameStream, ReplyChecker } from "../nbd-frames.ts";

const SIZE_BYTES = 4 * 1024 * 1024;
const REGION_BYTES = 512 * 1024;
const CLIENTS = 3;
const FRAMES_PER_STREAM = 8192;
const STREAMS = 8;
/** A client sends each of its streams this often, on a connection of its own each time, then makes new ones. */
const ROUNDS = 16;
const GO_ANSWER_BYTES = 18 + 32 + 34 + 20;
/** Part of the frames after which the server has taken the memory that it works with. */
const WARM_UP = 0.1;

export interface SocketReport {
  frames: number;
  connections: number;
  /** Writes that the well-behaved client read back. */
  readBack: number;
  growthBytes: number;
}

export async function manySocketFrames(options: { seed: number; frames: number }): Promise<SocketReport> {
  const playground = await Playground.make();
  try {
    const made = await playground.volume("create", "disk", "4MiB", "--durability=local");
    assert.equal(made.code, 0, made.stderr);
    const flags = playground
      .serverFlags()
      .map((flag) => (flag.startsWith("--export-idle") ? "--export-idle-ms=60000" : flag));
    const server = await playground.serve(flags);
    const report = await run(playground.socketPath, server.pid, options);
    assert.equal(await server.stop("SIGTERM"), 0, server.stderr);
    return report;
  } finally {
    await playground.remove();
  }
}

async function run(
  path: string,
  pid: number,
  { seed, frames }: { seed: number; frames: number },
): Promise<SocketReport> {
  const report = { frames: 0, connections: 0, readBack: 0, growthBytes: 0 };
  let warmBytes: number | undefined;
  let peakBytes = 0;
  const look = (): void => {
    if (report.frames < frames * WARM_UP) return;
    const bytes = residentBytes(pid);
    warmBytes ??= bytes;
    peakBytes = Math.max(peakBytes, bytes);
  };
  const fuzzing = Array.from({ length: CLIENTS }, async (_, client) => {
    let streams: FrameStream[] = [];
    for (let turn = 0; report.frames < frames; turn += 1) {
      const random = new SeededRandom(Math.imul(seed, 0x9e3779b1) ^ (turn * CLIENTS + client));
      if (turn % (STREAMS * ROUNDS) === 0) streams = Array.from({ length: STREAMS }, () => newStream(random, client));
      report.frames += await oneStream(path, random, streams[turn % STREAMS]);
      report.connections += 1;
      look();
    }
  });
  let isOver = false;
  const honest = honestClient(path, seed, () => isOver).then((count) => (report.readBack = count));
  await Promise.all(fuzzing).finally(() => (isOver = true));
  await honest;
  report.growthBytes = peakBytes - (warmBytes ?? peakBytes);
  return report;
}

/** A connection behind its handshake; what comes goes to `receive`. */
class Client {
  readonly socket: Socket;
  receive: (chunk: Buffer) => void = () => undefined;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => this.receive(chunk));
  }

  static async negotiate(path: string): Promise<Client> {
    const client = new Client(connect(path));
    const through = Promise.withResolvers<void>();
    let received = 0;
    client.receive = (chunk) => {
      received += chunk.length;
      if (received >= GO_ANSWER_BYTES) through.resolve();
    };
    client.socket.once("error", through.reject);
    client.socket.once("close", () => through.reject(new Error(`closed after ${received} bytes of the handshake`)));
    client.socket.write(Buffer.concat([clientFlags(3), option(7, infoData("disk"))]));
    await through.promise;
    assert.equal(received, GO_ANSWER_BYTES);
    return client;
  }
}

function newStream(random: SeededRandom, client: number): FrameStream {
  const region = { sizeBytes: SIZE_BYTES, offset: client * REGION_BYTES, length: REGION_BYTES };
  return frameStream(random, region, { frames: FRAMES_PER_STREAM, flushEvery: 4000, payloadBytes: 512 });
}

/** One connection with one stream; it ends by DISC, in the midst of a write, or in garbage. */
async function oneStream(path: string, random: SeededRandom, stream: FrameStream): Promise<number> {
  const client = await Client.negotiate(path);
  const { socket } = client;
  const checker = new ReplyChecker(stream);
  const done = Promise.withResolvers<void>();
  socket.on("error", done.reject);
  socket.on("close", () => done.reject(new Error("the server closed a connection that kept to the protocol")));
  client.receive = (chunk) => {
    try {
      checker.take(chunk);
      if (checker.isComplete) done.resolve();
    } catch (error) {
      done.reject(error);
    }
  };
  for (let at = 0; at < stream.bytes.length;) {
    const length = 1 + random.below(128 * 1024);
    if (!socket.write(stream.bytes.subarray(at, at + length)))
      await Promise.race([once(socket, "drain"), done.promise]);
    at += length;
  }
  await done.promise;
  socket
    .removeAllListeners("close")
    .removeAllListeners("error")
    .on("error", () => undefined);
  const closed = once(socket, "close");
  const endings = [
    request({ type: 2, cookie: 1n }),
    request({ type: 1, cookie: 1n, payload: Buffer.alloc(99) }).subarray(0, 60),
  ];
  socket.end(endings[random.below(3)] ?? random.bytes(64));
  await closed;
  return stream.frames;
}

/** Writes 4 KiB and reads them back until it is told to stop, on one connection, in a region of its own. */
async function honestClient(path: string, seed: number, isOver: () => boolean): Promise<number> {
  const client = await Client.negotiate(path);
  const { socket } = client;
  const random = new SeededRandom(seed ^ 0x600d);
  let chunks: Buffer[] = [];
  let receivedBytes = 0;
  let wake: (() => void) | undefined;
  client.receive = (chunk) => {
    chunks.push(chunk);
    receivedBytes += chunk.length;
    wake?.();
  };
  socket.on("close", () => wake?.());
  let count = 0;
  while (!isOver() || count === 0) {
    const offset = BigInt(CLIENTS * REGION_BYTES + 4096 * random.below(100));
    const payload = random.bytes(4096);
    // The read is sent once the write is answered: only then must it see it.
    for (const frame of [
      request({ type: 1, offset, payload, cookie: 1n }),
      request({ type: 0, offset, length: 4096, cookie: 2n }),
    ]) {
      const expected = frame.length > 28 ? 16 : 16 + 4096;
      socket.write(frame);
      while (receivedBytes < expected) {
        assert.ok(!socket.destroyed, "the server dropped its well-behaved client");
        await new Promise<void>((resolve) => (wake = resolve));
      }
      const answer = Buffer.concat(chunks);
      assert.equal(answer.length, expected);
      assert.equal(answer.readUInt32BE(4), 0);
      if (expected > 16) assert.ok(answer.subarray(16).equals(payload), "other bytes are read than were written");
      chunks = [];
      receivedBytes = 0;
    }
    count += 1;
  }
  const closed = once(socket, "close");
  socket.end(request({ type: 2, cookie: 3n }));
  await closed;
  return count;
}
