/** The server on real sockets of this machine: who may connect, how many, for how long, and how it closes. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rename, rm, stat } from "node:fs/promises";
import { Server, connect } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { Clock } from "../../src/base/clock.ts";
import { OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import type { BlockDevice } from "../../src/block/device.ts";
import { FaultyDevice } from "../../src/block/faulty-device.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { Deadline } from "../../src/nbd/deadline.ts";
import type { NbdServerOptions } from "../../src/nbd/server.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { clientFlags, infoData, option, replies, request } from "./frames.ts";

const MIB = 1024 * 1024;

interface Bench {
  server: NbdServer;
  path: string;
  device: BlockDevice;
  released(): number;
  client(): Promise<Client>;
}

/** A client that has connected; bytes() is what it has received, handshake included. */
class Client {
  readonly socket: Socket;
  readonly #chunks: Buffer[] = [];
  #waiting: (() => void) | undefined;
  #receivedBytes = 0;
  closed = false;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk) => {
      this.#chunks.push(chunk);
      this.#receivedBytes += chunk.length;
      this.#waiting?.();
    });
    const over = () => {
      this.closed = true;
      this.#waiting?.();
    };
    socket.on("error", over);
    socket.on("end", over);
    socket.on("close", over);
  }

  bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }

  /** Exactly the next `length` bytes received. */
  async read(length: number): Promise<Buffer> {
    for (;;) {
      if (this.#receivedBytes >= length) {
        const all = this.bytes();
        this.#receivedBytes -= length;
        this.#chunks.splice(0, this.#chunks.length, all.subarray(length));
        return all.subarray(0, length);
      }
      if (this.closed) throw new Error(`closed after ${this.#receivedBytes} of ${length} bytes`);
      await this.#news();
    }
  }

  async go(name: string): Promise<void> {
    this.socket.write(Buffer.concat([clientFlags(3), option(7, infoData(name))]));
    await this.read(18 + 32 + 34 + 20);
  }

  /** Resolves when the server has closed the connection. */
  async gone(): Promise<void> {
    while (!this.closed) await this.#news();
  }

  #news(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting = resolve;
    });
  }
}

async function withServer(
  run: (bench: Bench) => Promise<void>,
  options: Partial<NbdServerOptions> = {},
  given?: BlockDevice,
) {
  const directory = await mkdtemp(join(tmpdir(), "nbd-"));
  const path = join(directory, "made", "nbd.sock");
  const device = given ?? new MemoryDevice({ sizeBytes: 64 * MIB });
  let releases = 0;
  const source = {
    list: () => ["disk"],
    open: async (name: string) => (name === "disk" ? { device, release: () => void (releases += 1) } : undefined),
  };
  const server = new NbdServer({ source, clock: systemClock, log: nullLog, ...options });
  const sockets: Socket[] = [];
  const client = async () => {
    const socket = connect({ path, allowHalfOpen: true });
    sockets.push(socket);
    const result = new Client(socket);
    await once(socket, "connect");
    return result;
  };
  try {
    await server.listen({ path });
    await run({ server, path, device, released: () => releases, client });
  } finally {
    for (const socket of sockets) socket.destroy();
    await server.close(0);
    await rm(directory, { recursive: true, force: true });
  }
}

describe("listening", () => {
  test("a unix socket is its owner's alone", () =>
    withServer(async ({ path }) => {
      assert.equal((await stat(path)).mode & 0o777, 0o600);
      assert.equal((await stat(join(path, ".."))).mode & 0o777, 0o700);
    }));

  test("a socket nobody listens on is replaced, one that is served is not", () =>
    withServer(async ({ path, client }) => {
      const second = new NbdServer({
        source: { list: () => [], open: async () => undefined },
        clock: systemClock,
        log: nullLog,
      });
      await assert.rejects(
        second.listen({ path }),
        (error) => error instanceof OperationError && error.kind === "in-use",
      );
      const stale = `${path}-stale`;
      const abandoned = new Server();
      abandoned.listen(stale);
      await once(abandoned, "listening");
      await rename(stale, `${stale}-kept`);
      await new Promise((resolve) => abandoned.close(resolve));
      await rename(`${stale}-kept`, stale);
      await second.listen({ path: stale });
      await second.close();
      await (await client()).go("disk");
    }));

  test("tcp is refused without tls, and served where that is wanted", () =>
    withServer(async ({ server }) => {
      const address = { host: "127.0.0.1", port: 0 };
      const refusal = (error: unknown) =>
        error instanceof OperationError && error.kind === "invalid" && /insecure/.test(error.message);
      for (const wrong of [address, { ...address, insecure: false }])
        await assert.rejects(server.listen(wrong), refusal);
      const port = await server.listen({ ...address, insecure: true });
      const socket = connect(port, "127.0.0.1");
      const client = new Client(socket);
      await client.go("disk");
      socket.write(request({ type: 1, payload: Buffer.alloc(MIB, 5), cookie: 1n }));
      socket.write(request({ type: 0, length: MIB, cookie: 2n }));
      const answer = await client.read(32 + MIB);
      assert.deepEqual(
        replies(answer, new Map([[2n, MIB]])).map(({ error }) => error),
        [0, 0],
      );
      socket.destroy();
    }));
});

describe("clients", () => {
  test("what is written in pieces of odd sizes is read back, over several connections", () =>
    withServer(async ({ client }) => {
      const [first, second] = [await client(), await client()];
      await first.go("disk");
      await second.go("disk");
      const content = new SeededRandom(9).bytes(4 * MIB);
      const bytes = request({ type: 1, offset: 4096n, payload: content, cookie: 1n });
      for (let at = 0; at < bytes.length; at += 99_991) first.socket.write(bytes.subarray(at, at + 99_991));
      await first.read(16);
      first.socket.write(request({ type: 3, cookie: 2n }));
      await first.read(16);
      second.socket.write(request({ type: 0, offset: 4096n, length: content.length, cookie: 3n }));
      assert.ok((await second.read(16 + content.length)).subarray(16).equals(content));
    }));

  test("thousands of requests sent in one go are all answered, though others get their turn between", () =>
    withServer(async ({ client }) => {
      const busy = await client();
      await busy.go("disk");
      const payload = Buffer.alloc(4096, 1);
      const frames = Array.from({ length: 4096 }, (_, index) => request({ type: 1, payload, cookie: BigInt(index) }));
      busy.socket.write(Buffer.concat(frames));
      const answers = replies(await busy.read(4096 * 16));
      assert.deepEqual(
        answers.map(({ cookie }) => cookie),
        frames.map((_, index) => BigInt(index)),
      );
    }));

  test("requests sent together with GO are served", () =>
    withServer(async ({ client }) => {
      const early = await client();
      early.socket.write(
        Buffer.concat([clientFlags(3), option(7, infoData("disk")), request({ type: 3, cookie: 7n })]),
      );
      await early.read(18 + 32 + 34 + 20);
      assert.deepEqual(replies(await early.read(16)), [{ error: 0, cookie: 7n, payload: Buffer.alloc(0) }]);
    }));

  test("one that shuts down its side still gets its answers, and its export is released", () =>
    withServer(async ({ client, released }) => {
      const half = await client();
      await half.go("disk");
      half.socket.end(request({ type: 0, length: 8 * MIB, cookie: 1n }));
      assert.equal((await half.read(16 + 8 * MIB)).length, 16 + 8 * MIB);
      await half.gone();
      assert.equal(released(), 1);
    }));

  test("a broken frame ends its connection alone", () =>
    withServer(async ({ client }) => {
      const [bad, good] = [await client(), await client()];
      await bad.go("disk");
      await good.go("disk");
      bad.socket.write(request({ magic: 1, type: 0, cookie: 1n }));
      await bad.gone();
      good.socket.write(request({ type: 3, cookie: 2n }));
      assert.equal(replies(await good.read(16))[0].error, 0);
    }));

  test("more than the limit are turned away, and a place that is free again is given", () =>
    withServer(
      async ({ server, client }) => {
        const [first, second] = [await client(), await client()];
        await first.go("disk");
        await second.go("disk");
        const third = await client();
        await third.gone();
        assert.equal(third.bytes().length, 0);
        second.socket.destroy();
        while (server.connectionCount > 1) await systemClock.yield();
        await (await client()).go("disk");
      },
      { connectionLimit: 2 },
    ));

  test("a handshake that is not through in time is cut off", async () => {
    const deadlines: (() => void)[] = [];
    const clock: Clock = {
      ...systemClock,
      after: (_ms, callback) => {
        deadlines.push(callback);
        return { cancel: () => void deadlines.splice(deadlines.indexOf(callback), 1) };
      },
    };
    await withServer(
      async ({ client, server }) => {
        const done = await client();
        await done.go("disk");
        const idle = await client();
        await idle.read(18);
        assert.equal(deadlines.length, 1);
        deadlines[0]();
        await idle.gone();
        done.socket.write(request({ type: 3, cookie: 1n }));
        await done.read(16);
        while (server.connectionCount > 1) await systemClock.yield();
      },
      { clock },
    );
  });
});

test("time that the server takes to open an export does not count against the client", async () => {
  let nowMs = 0;
  let expire: (() => void) | undefined;
  let allowedMs = 0;
  const clock: Clock = {
    ...systemClock,
    monotonicMs: () => nowMs,
    after: (ms, callback) => {
      expire = callback;
      allowedMs = ms;
      return { cancel: () => void (expire = undefined) };
    },
  };
  const deadline = new Deadline(clock, 10_000, () => {});
  nowMs = 4_000;
  await deadline.exempt(() => {
    assert.equal(expire, undefined);
    nowMs += 60_000;
  });
  assert.equal(allowedMs, 6_000);
  assert.notEqual(expire, undefined);
  deadline.cancel();
  assert.equal(expire, undefined);
});

test("closing answers what runs, releases every export and lets nothing take effect later", async () => {
  const gate = Promise.withResolvers<void>();
  const inner = new MemoryDevice({ sizeBytes: MIB });
  const reached = Promise.withResolvers<void>();
  const device = new FaultyDevice(inner, systemClock, () => {
    reached.resolve();
    return { hold: gate.promise };
  });
  await withServer(
    async ({ client, server, released }) => {
      const busy = await client();
      await busy.go("disk");
      busy.socket.write(request({ type: 1, payload: Buffer.alloc(4096, 3), cookie: 1n }));
      await reached.promise;
      const closing = server.close();
      gate.resolve();
      await closing;
      assert.equal(released(), 1);
      assert.equal(server.connectionCount, 0);
      assert.deepEqual(replies(await busy.read(16)), [{ error: 0, cookie: 1n, payload: Buffer.alloc(0) }]);
      await busy.gone();
    },
    {},
    device,
  );
});
