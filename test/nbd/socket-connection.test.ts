/** The ways into a connection that the server's tests do not take: a descriptor, and a plain stream. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import type { Duplex } from "node:stream";
import { duplexPair } from "node:stream";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { connectionOfStream } from "../../src/nbd/socket-connection.ts";
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
