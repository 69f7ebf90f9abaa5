/** Connections over real sockets: the ways in that the server's tests do not take, and replies past Node's stream. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, fstatSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { duplexPair } from "node:stream";
import { test, type TestContext } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import type { Connection } from "../../src/nbd/connection.ts";
import { connectionOfAccepted, connectionOfStream, descriptorOf } from "../../src/nbd/socket-connection.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { replies, request } from "./frames.ts";

const MIB = 1024 * 1024;

/** Writes 2 MiB, reads them back, disconnects; answers what came. */
async function exchange(stream: Duplex): Promise<void> {
  const content = new SeededRandom(2).bytes(2 * MIB);
  const chunks: Buffer[] = [];
  stream.on("data", (chunk: Buffer) => chunks.push(chunk));
  stream.write(request({ type: 1, payload: content, cookie: 1n }));
  stream.write(request({ type: 0, length: content.length, cookie: 2n }));
  stream.write(request({ type: 2, cookie: 3n }));
  await once(stream, "end");
  const [written, read, ...more] = replies(Buffer.concat(chunks), new Map([[2n, content.length]]));
  assert.equal(written.error, 0);
  assert.ok(read.payload.equals(content));
  assert.equal(more.length, 0);
}

test("a plain stream is served by its data events", async () => {
  const [ours, theirs] = duplexPair({ allowHalfOpen: true });
  const transmission = new Transmission(connectionOfStream(ours), new MemoryDevice({ sizeBytes: 8 * MIB }));
  await exchange(theirs);
  theirs.end();
  assert.equal((await transmission.closed).reason, "disconnect");
});

const PROGRAM = `
import { MemoryDevice } from ${JSON.stringify(new URL("../../src/block/memory-device.ts", import.meta.url).href)};
import { connectionOfFd } from ${JSON.stringify(new URL("../../src/nbd/socket-connection.ts", import.meta.url).href)};
import { Transmission } from ${JSON.stringify(new URL("../../src/nbd/transmission.ts", import.meta.url).href)};
const transmission = new Transmission(connectionOfFd(3), new MemoryDevice({ sizeBytes: ${8 * MIB} }), { onDrain: "stop" });
console.log((await transmission.closed).reason);
`;

test("one end of a socketpair, given by its descriptor, is served", async () => {
  const child = spawn(process.execPath, ["--input-type=module", "--eval", PROGRAM], {
    stdio: ["ignore", "pipe", "inherit", "pipe"],
  });
  const output: Buffer[] = [];
  child.stdout?.on("data", (chunk: Buffer) => output.push(chunk));
  const stream = child.stdio[3] as Duplex;
  await exchange(stream);
  stream.end();
  await once(child, "close");
  assert.equal(Buffer.concat(output).toString(), "disconnect\n");
});

interface Pair {
  connection: Connection;
  client: Socket;
  directory: string;
}

/** An accepted connection over a socket of the file system, and its client; both are closed after the test. */
async function connected(context: TestContext): Promise<Pair> {
  const directory = mkdtempSync(join(tmpdir(), "s3block-socket-"));
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  server.listen(join(directory, "socket"));
  await once(server, "listening");
  const accepted = once(server, "connection") as Promise<[Socket]>;
  const client = connect(join(directory, "socket"));
  const connection = connectionOfAccepted((await accepted)[0]);
  context.after(async () => {
    client.destroy();
    connection.destroy();
    await new Promise((resolve) => server.close(resolve));
    rmSync(directory, { recursive: true });
  });
  return { connection, client, directory };
}

test("a client that reads late, and then slowly, gets every byte", async (context) => {
  const { connection, client } = await connected(context);
  const content = new SeededRandom(4).bytes(4 * MIB);
  const device = new MemoryDevice({ sizeBytes: 4 * MIB });
  device.write(0, content, false);
  const transmission = new Transmission(connection, device);
  const count = 300;
  const lengths = new Map<bigint, number>();
  for (let index = 0; index < count; index += 1) {
    const length = 4096 * (1 + (index % 16));
    lengths.set(BigInt(index), length);
    client.write(request({ type: 0, offset: BigInt(index) * 4096n, length, cookie: BigInt(index) }));
  }
  while (transmission.counters().requests < 10) await new Promise((resolve) => setImmediate(resolve));
  const wanted = [...lengths.values()].reduce((sum, length) => sum + 16 + length, 0);
  const chunks: Buffer[] = [];
  for (let received = 0; received < wanted;) {
    const chunk = client.read(Math.min(50_000, wanted - received)) as Buffer | null;
    if (chunk === null) await new Promise((resolve) => setImmediate(resolve));
    else chunks.push(chunk);
    received += chunk?.length ?? 0;
  }
  const answers = replies(Buffer.concat(chunks), lengths);
  assert.equal(answers.length, count);
  for (const { cookie, payload } of answers) {
    const start = Number(cookie) * 4096;
    assert.ok(payload.equals(content.subarray(start, start + payload.length)), `reply ${cookie}`);
  }
  await transmission.destroy();
});

test("a client that goes away with replies on their way ends its connection", async (context) => {
  const { connection, client } = await connected(context);
  const transmission = new Transmission(connection, new MemoryDevice({ sizeBytes: MIB }));
  for (let index = 0; index < 64; index += 1) client.write(request({ type: 0, length: MIB, cookie: BigInt(index) }));
  while (transmission.counters().requests < 1) await new Promise((resolve) => setImmediate(resolve));
  client.destroy();
  assert.ok(["end", "socket"].includes((await transmission.closed).reason));
});

test("nothing is sent to the number of a closed socket, which another file may have by then", async (context) => {
  const { connection, directory } = await connected(context);
  const descriptor = descriptorOf(connection) ?? -1;
  assert.equal(connection.writeNow(Buffer.from("taken")), 5);
  connection.destroy();
  const opened: number[] = [];
  while (opened.at(-1) !== descriptor && opened.length < 100) opened.push(openSync(join(directory, "other"), "a"));
  assert.equal(opened.at(-1), descriptor);
  assert.equal(connection.writeNow(Buffer.from("lost")), 0);
  assert.equal(fstatSync(descriptor).size, 0);
  for (const each of opened) closeSync(each);
});
