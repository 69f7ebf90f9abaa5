/**
 * Bounds that strangers and the careless meet at the doorways that are not NBD's: connections and headers of the metrics
 * port, sizes of messages of both gRPC sockets. What is beyond is refused, and the next one is served.
 * (NBD's bounds: test/nbd, test/security/nbd-tls.test.ts; calls at one time: test/faults/overload.test.ts.)
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { TestContext } from "node:test";
import { Client, credentials, Metadata, status as code } from "@grpc/grpc-js";
import type { ServiceError } from "@grpc/grpc-js";
import { ControlServer } from "../../src/attachment/control-server.ts";
import type { DataPlane } from "../../src/attachment/data-plane.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { serveCsi } from "../../src/csi/grpc-server.ts";
import { HttpServer } from "../../src/observability/http.ts";
import { RecordingLog } from "../csi/recording-log.ts";

const MIB = 1024 * 1024;

async function metricsPort(context: TestContext): Promise<number> {
  const log = new RecordingLog();
  const metrics = async (): Promise<string> => "x 1\n";
  const server = new HttpServer({ address: "127.0.0.1:0", log, metrics, unhealthy: () => undefined });
  const address = await server.listen();
  context.after(() => server.close());
  return Number(address.split(":").at(-1));
}

/** Resolves when the connection is gone, broken or not. */
function closing(socket: Socket): Promise<void> {
  return new Promise((resolve) => socket.once("close", () => resolve()));
}

/** All that comes back for `sent` until the server closes the connection. */
async function exchange(port: number, sent: string): Promise<string> {
  const socket = connect(port, "127.0.0.1");
  let answer = "";
  socket.on("data", (bytes: Buffer) => (answer += bytes.toString("latin1")));
  socket.on("error", () => {});
  socket.write(sent);
  await closing(socket);
  return answer;
}

test("the metrics port cuts off headers without end, garbage and foreign methods, and goes on", async (context) => {
  const port = await metricsPort(context);
  const close = "connection: close\r\n\r\n";
  for (const sent of [
    `GET /metrics HTTP/1.1\r\nhost: a\r\nx: ${"y".repeat(MIB)}\r\n${close}`,
    `GET /${"a".repeat(MIB)} HTTP/1.1\r\nhost: a\r\n${close}`,
    `GET /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n${close}`,
    "\x16\x03\x01\x02\x00".repeat(1000),
    `CONNECT a:1 HTTP/1.1\r\nhost: a\r\n${close}`,
    `DELETE /metrics HTTP/1.1\r\nhost: a\r\n${close}`,
    `GET /../../etc/passwd HTTP/1.1\r\nhost: a\r\n${close}`,
  ]) {
    assert.doesNotMatch(
      await exchange(port, sent),
      /^HTTP\/1\.1 200|root:|at .*\.ts:/,
      JSON.stringify(sent.slice(0, 40)),
    );
  }
  assert.match(await exchange(port, `GET /metrics HTTP/1.1\r\nhost: a\r\n${close}`), /^HTTP\/1\.1 200[\s\S]*x 1\n$/);
});

test("the metrics port holds thirty-two connections at a time, and a place that is free again is given", async (context) => {
  const port = await metricsPort(context);
  const sockets: Socket[] = [];
  for (let index = 0; index < 32; index += 1) {
    const socket = connect(port, "127.0.0.1");
    socket.on("error", () => {});
    sockets.push(socket);
    await once(socket, "connect");
    // The server has accepted what it has answered.
    socket.write("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n");
    await once(socket, "data");
  }
  assert.equal(await exchange(port, "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"), "");
  for (const socket of sockets) socket.destroy();
  for (;;) {
    const answer = await exchange(port, "GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    if (answer.startsWith("HTTP/1.1 200")) break;
  }
});

/** A control server, a CSI server, each with a method that takes any bytes, on sockets of a temporary directory. */
async function grpcSockets(context: TestContext): Promise<{ path: string; method: string; limitBytes: number }[]> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-limits-"));
  const nothing = async (): Promise<never> => {
    throw new Error("not called");
  };
  const dataPlane: DataPlane = {
    attach: nothing,
    detach: async () => {},
    getAttachment: nothing,
    flush: nothing,
    listAttachments: nothing,
  };
  const common = { log: new RecordingLog(), clock: systemClock };
  const control = new ControlServer({ ...common, socketPath: join(directory, "control.sock"), dataPlane });
  await control.listen();
  const services = { Controller: { deleteVolume: async () => ({}) } };
  const csi = await serveCsi({ ...common, socketPath: join(directory, "csi.sock"), services });
  context.after(async () => {
    await control.close();
    await csi.close();
    await rm(directory, { recursive: true });
  });
  return [
    { path: join(directory, "control.sock"), method: "/s3block.v1.NbdServer/Detach", limitBytes: MIB },
    { path: join(directory, "csi.sock"), method: "/csi.v1.Controller/DeleteVolume", limitBytes: 4 * MIB },
  ];
}

/** Field 1, a string, as the first field of both requests. */
function message(text: string): Buffer {
  const bytes = Buffer.from(text);
  const length: number[] = [];
  for (let rest = bytes.length; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) {
      length.push(rest);
      break;
    }
    length.push((rest % 128) + 128);
  }
  return Buffer.concat([Buffer.from([0x0a, ...length]), bytes]);
}

test("messages and bytes beyond the limits are refused on both gRPC sockets, and the next call is served", async (context) => {
  for (const { path, method, limitBytes } of await grpcSockets(context)) {
    const client = new Client(`unix:${path}`, credentials.createInsecure());
    const codeOf = (body: Buffer, name = method, metadata = new Metadata()): Promise<number> =>
      new Promise((resolve) => {
        const same = (bytes: Buffer): Buffer => bytes;
        const done = (error: ServiceError | null): void => resolve(error?.code ?? code.OK);
        client.makeUnaryRequest(name, same, same, body, metadata, done);
      });
    const good = message(`vol-${"0".repeat(32)}`);
    const fat = new Metadata();
    for (let index = 0; index < 64; index += 1) fat.set(`x-${index}`, "y".repeat(8192));
    assert.equal(await codeOf(good), code.OK);
    assert.equal(await codeOf(message("v".repeat(limitBytes + 1))), code.RESOURCE_EXHAUSTED);
    // HTTP/2 bounds metadata by the pieces it comes in: half a megabyte is refused or thrown away, and nothing else happens.
    assert.ok([code.OK, code.INTERNAL, code.UNAVAILABLE].includes(await codeOf(good, method, fat)));
    assert.equal(await codeOf(good, `${method}/../Attach`), code.UNIMPLEMENTED);
    assert.notEqual(await codeOf(Buffer.alloc(1000, 0xff)), code.OK);
    assert.equal(await codeOf(good), code.OK);
    client.close();
    const raw = connect(path);
    raw.on("error", () => {});
    raw.write(Buffer.alloc(MIB, 0x41));
    raw.resume();
    await closing(raw);
    const next = new Client(`unix:${path}`, credentials.createInsecure());
    await new Promise<void>((resolve, reject) => {
      next.waitForReady(Date.now() + 10_000, (error) => (error === undefined ? resolve() : reject(error)));
    });
    next.close();
  }
});
