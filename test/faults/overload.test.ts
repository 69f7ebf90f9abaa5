/**
 * More connections, calls and data than the limits allow: the one too many is refused with the right word, everybody else
 * goes on, and nothing has to be done for it to be over.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import { ControlClient } from "../../src/attachment/control-client.ts";
import { ControlServer } from "../../src/attachment/control-server.ts";
import type { DataPlane } from "../../src/attachment/data-plane.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { serveCsi } from "../../src/csi/grpc-server.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { CsiClient } from "../csi/csi-client.ts";
import { RecordingLog } from "../csi/recording-log.ts";
import { NbdClient } from "./nbd-client.ts";
import { OutageBench } from "./outage-bench.ts";

const MIB = 1024 * 1024;
const BLOCK = 4096;

interface NbdGround {
  path: string;
  server: NbdServer;
  log: RecordingLog;
  /** A connection that has not said anything. */
  stranger(): Promise<Socket>;
}

async function withNbd(run: (ground: NbdGround) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-overload-"));
  const path = join(directory, "nbd.sock");
  const log = new RecordingLog();
  const device = new MemoryDevice({ sizeBytes: 16 * MIB });
  const source = { list: () => ["disk"], open: async () => ({ device, release: () => undefined }) };
  const server = new NbdServer({ source, clock: systemClock, log });
  const strangers: Socket[] = [];
  const stranger = async (): Promise<Socket> => {
    const socket = connect({ path, allowHalfOpen: true });
    socket.on("error", () => undefined);
    strangers.push(socket);
    await once(socket, "connect");
    return socket;
  };
  try {
    await server.listen({ path });
    await run({ path, server, log, stranger });
  } finally {
    for (const socket of strangers) socket.destroy();
    await server.close(0);
    await rm(directory, { recursive: true });
  }
}

/** A client that reads and writes without end until it is told to stop; every answer must be a success. */
function busyClient(client: NbdClient): { stop: () => Promise<number>; answered: () => number } {
  let answered = 0;
  let isStopping = false;
  const work = (async () => {
    while (!isStopping) {
      assert.equal(await client.write(0, Buffer.alloc(BLOCK, answered & 0xff)), 0);
      assert.equal((await client.read(0, BLOCK)).payload[0], answered & 0xff);
      answered += 1;
    }
  })();
  const stop = async (): Promise<number> => {
    isStopping = true;
    await work;
    client.close();
    return answered;
  };
  return { stop, answered: () => answered };
}

test("connections that say nothing keep nobody out, and are held in a bounded number", () =>
  withNbd(async ({ path, server, stranger }) => {
    const early = busyClient(await NbdClient.open(path, "disk"));
    for (let round = 0; round < 6; round += 1) {
      await Promise.all(Array.from({ length: 50 }, () => stranger()));
      const honest = await NbdClient.open(path, "disk");
      assert.equal(await honest.write(8 * MIB, Buffer.alloc(BLOCK, round)), 0);
      honest.close();
      assert.ok(server.connectionCount <= 64 + 8, `${server.connectionCount} connections`);
    }
    assert.ok((await early.stop()) > 0);
  }));

test("garbage ends its own connection, fills no log, and disturbs nobody", () =>
  withNbd(async ({ path, server, log, stranger }) => {
    const random = new SeededRandom(4);
    const victim = busyClient(await NbdClient.open(path, "disk"));
    for (let round = 0; round < 40; round += 1) {
      const ends = Array.from({ length: 10 }, async () => {
        const socket = await stranger();
        const ended = once(socket.resume(), "close");
        socket.end(random.bytes(1 + random.below(4000)));
        await ended;
      });
      await Promise.all(ends);
    }
    const before = victim.answered();
    assert.ok((await victim.stop()) >= before && before > 0);
    assert.ok(server.connectionCount <= 1, `${server.connectionCount} connections`);
    const warnings = log.lines.filter((line) => line.includes("handshake refused"));
    assert.ok(warnings.length >= 1 && warnings.length < 20, `${warnings.length} warnings of 400`);
  }));

test("clients that ask without end, and one that takes no answers, leave the others their turn", () =>
  withNbd(async ({ path }) => {
    const victim = await NbdClient.open(path, "disk");
    const greedy = await Promise.all(Array.from({ length: 8 }, () => NbdClient.open(path, "disk")));
    let isOver = false;
    let answered = 0;
    const floods = greedy.map(async (client) => {
      while (!isOver) {
        const reads = Array.from({ length: 64 }, () => client.read(MIB, 64 * 1024));
        answered += (await Promise.all(reads)).length;
      }
    });
    const deaf = await NbdClient.open(path, "disk");
    deaf.pause();
    const unheard = Array.from({ length: 2000 }, () => deaf.read(0, 64 * 1024));
    for (let count = 0; count < 50; count += 1) {
      const before = answered;
      assert.equal((await victim.read(0, BLOCK)).answer, 0);
      // Eight others have 64 requests each under way: no more than what they had may come first, twice over.
      assert.ok(answered - before <= 2 * 8 * 64, `${answered - before} requests of others came first`);
    }
    isOver = true;
    await Promise.all(floods);
    for (const client of [victim, deaf, ...greedy]) client.close();
    assert.equal((await Promise.all(unheard)).at(-1)?.answer, "gone");
  }));

test("one CSI call more than the limit is told to come back, a probe never, and then there is room again", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "s3block-overload-"));
  const log = new RecordingLog();
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  let atWork = 0;
  const server = await serveCsi({
    socketPath: join(directory, "csi.sock"),
    services: {
      Identity: { probe: async () => ({}) },
      Controller: {
        deleteVolume: async () => {
          atWork += 1;
          await released;
          atWork -= 1;
          return {};
        },
      },
    },
    log,
    clock: systemClock,
    callLimit: 20,
  });
  const clients = Array.from({ length: 4 }, () => new CsiClient(join(directory, "csi.sock")));
  context.after(async () => {
    for (const client of clients) client.close();
    await server.close();
    await rm(directory, { recursive: true });
  });
  const calls = Array.from({ length: 100 }, (_, index) =>
    clients[index % 4].codeOf("Controller", "deleteVolume", { volumeId: `v-${index}` }),
  );
  let aborted = 0;
  await new Promise<void>((resolve) => {
    for (const call of calls) {
      void call.then((answer) => {
        if (answer === code.ABORTED && ++aborted === 80) resolve();
      });
    }
  });
  assert.equal(atWork, 20);
  assert.equal(await clients[0].codeOf("Identity", "probe"), code.OK);
  release();
  const codes = await Promise.all(calls);
  assert.equal(codes.filter((answer) => answer === code.OK).length, 20);
  assert.equal(await clients[1].codeOf("Controller", "deleteVolume", { volumeId: "v" }), code.OK);
});

test("a CSI message above the limit is refused, and its connection goes on", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "s3block-overload-"));
  const socketPath = join(directory, "csi.sock");
  const services = { Controller: { deleteVolume: async () => ({}) } };
  const server = await serveCsi({ socketPath, services, log: new RecordingLog(), clock: systemClock });
  const client = new CsiClient(socketPath);
  context.after(async () => {
    client.close();
    await server.close();
    await rm(directory, { recursive: true });
  });
  const huge = { volumeId: "v".repeat(5 * MIB) };
  assert.equal(await client.codeOf("Controller", "deleteVolume", huge), code.RESOURCE_EXHAUSTED);
  assert.equal(await client.codeOf("Controller", "deleteVolume", { volumeId: "v" }), code.OK);
});

test("one control call more than the limit is busy, and then there is room again", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "s3block-overload-"));
  const socketPath = join(directory, "control.sock");
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  const never = async (): Promise<never> => {
    throw new Error("not called");
  };
  const dataPlane: DataPlane = {
    attach: never,
    detach: never,
    getAttachment: never,
    flush: never,
    listAttachments: async () => {
      await released;
      return [];
    },
  };
  const server = new ControlServer({
    socketPath,
    dataPlane,
    log: new RecordingLog(),
    clock: systemClock,
    callLimit: 5,
  });
  await server.listen();
  const client = new ControlClient({ socketPath });
  context.after(async () => {
    client.close();
    await server.close();
    await rm(directory, { recursive: true });
  });
  const calls = Array.from({ length: 12 }, () => client.listAttachments());
  const settled = Promise.allSettled(calls);
  await Promise.any(
    calls.map(
      async (call) =>
        await call.then(
          () => never(),
          () => undefined,
        ),
    ),
  );
  release();
  const refused = (await settled).filter((result) => result.status === "rejected");
  assert.equal(refused.length, 7);
  for (const result of refused) assert.match(String(result.reason), /too many calls are at work: retry later/);
  assert.deepEqual(await client.listAttachments(), []);
});

test("more dirty data of more volumes than memory and journals hold: all of it slows, none of it fails", async () => {
  const bench = new OutageBench();
  await bench.open(6, 4 * MIB);
  // Six volumes write a hundred times faster than the store takes it.
  let freeMs = 0;
  bench.weather = (nowMs) => {
    freeMs = Math.max(freeMs, nowMs) + 40;
    return undefined;
  };
  bench.latencyMs = () => Math.max(20, freeMs - bench.clock.monotonicMs());
  await bench.load({ volumes: 6, blocks: 32, pauseMs: 20, flushEvery: 10 }, bench.clock.monotonicMs() + 4000);
  assert.ok(bench.mostUploadBytes > 2 * MIB && bench.mostUploadBytes <= 64 * MIB, `${bench.mostUploadBytes} bytes`);
  await bench.check();
  await bench.close();
});
