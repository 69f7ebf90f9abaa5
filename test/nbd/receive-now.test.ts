/** Receiving past Node's stream: every byte once and in order, and only as long as the receiver wants it. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { Socket } from "node:net";
import { test, type TestContext } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import type { Connection, Receiver } from "../../src/nbd/connection.ts";
import { loadLibc } from "../../src/nbd/kernel/libc.ts";
import { connectionOfFd, type ReceiveNow } from "../../src/nbd/socket-connection.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { replies, request } from "./frames.ts";

const libc = await loadLibc();

/** A connection over one end of a socketpair, and its client; both are closed after the test. */
function connected(context: TestContext, receiveNow: ReceiveNow): { connection: Connection; client: Socket } {
  const [ours, theirs] = libc.socketPair();
  const connection = connectionOfFd(ours, receiveNow);
  const client = new Socket({ fd: theirs });
  context.after(() => {
    client.destroy();
    connection.destroy();
  });
  return { connection, client };
}

test("a client that sends much at a time is served in order, also across the end of its requests", async (context) => {
  let receivedBytes = 0;
  const { connection, client } = connected(context, (descriptor, target) => {
    const length = libc.receiveNow(descriptor, target);
    receivedBytes += Math.max(0, length);
    return length;
  });
  const random = new SeededRandom(6);
  const device = new MemoryDevice({ sizeBytes: 4 * 1024 * 1024 });
  const transmission = new Transmission(connection, device);
  const lengths = new Map<bigint, number>();
  const contents = new Map<bigint, Buffer>();
  for (let index = 0; index < 400; index += 1) {
    const content = random.bytes(4096 * (1 + (index % 3)));
    const offset = BigInt(index % 200) * 16_384n;
    client.write(request({ type: 1, offset, payload: content, cookie: BigInt(index) }));
    client.write(request({ type: 0, offset, length: content.length, cookie: BigInt(1000 + index) }));
    lengths.set(BigInt(1000 + index), content.length);
    contents.set(BigInt(1000 + index), content);
  }
  client.end(request({ type: 2, cookie: 9999n }));
  const chunks: Buffer[] = [];
  client.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(client, "end");
  assert.equal((await transmission.closed).reason, "disconnect");
  const answers = replies(Buffer.concat(chunks), lengths);
  assert.equal(answers.length, 800);
  for (const { cookie, error, payload } of answers) {
    assert.equal(error, 0);
    assert.ok(payload.equals(contents.get(cookie) ?? Buffer.alloc(0)), `reply ${cookie}`);
  }
  assert.ok(receivedBytes > 0);
});

test("a client that ends is heard to the end", async (context) => {
  const { connection, client } = connected(context, libc.receiveNow);
  const transmission = new Transmission(connection, new MemoryDevice({ sizeBytes: 8192 }));
  client.end(request({ type: 0, length: 4096, cookie: 1n }));
  const chunks: Buffer[] = [];
  client.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(client, "end");
  assert.equal(replies(Buffer.concat(chunks), new Map([[1n, 4096]])).length, 1);
  assert.equal((await transmission.closed).reason, "end");
});

/** Its bytes never end: `react` is told of each receive, the client's single byte first. Answers how many there were. */
async function receivesOf(
  context: TestContext,
  react: (connection: Connection, count: number) => void,
): Promise<number> {
  let receives = 0;
  const { connection, client } = connected(context, (_, target) => {
    target.fill(7, 0, 10);
    return 10;
  });
  const first = Promise.withResolvers<void>();
  const receiver: Receiver = {
    receiveBuffer: () => Buffer.alloc(100),
    received: () => {
      receives += 1;
      first.resolve();
      react(connection, receives);
    },
    ended: () => {},
    closed: () => {},
  };
  connection.setReceiver(receiver);
  connection.resume();
  // What is received first stands in memory of before the receiver was known.
  client.write("a");
  await first.promise;
  await new Promise((resolve) => setImmediate(resolve));
  const before = receives;
  client.write("b");
  while (receives === before) await new Promise((resolve) => setImmediate(resolve));
  await new Promise((resolve) => setImmediate(resolve));
  return receives - before;
}

test("others get their turn while one connection has always more", async (context) => {
  assert.equal(await receivesOf(context, () => {}), 5);
});

test("who pauses, ends, or destroys the connection, or hands it on, receives nothing more", async (context) => {
  const nobody: Receiver = {
    receiveBuffer: () => Buffer.alloc(100),
    received: () => assert.fail("it was for another receiver"),
    ended: () => {},
    closed: () => {},
  };
  const ways: ((connection: Connection) => void)[] = [
    (connection) => connection.pause(),
    (connection) => connection.end(),
    (connection) => connection.destroy(),
    (connection) => connection.setReceiver(nobody),
  ];
  for (const [index, way] of ways.entries()) {
    const count = await receivesOf(context, (connection, receives) => {
      if (receives === 3) way(connection);
    });
    assert.equal(count, 2, `way ${index}`);
  }
});
