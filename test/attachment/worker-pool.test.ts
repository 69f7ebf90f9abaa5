/** Control thread and serving thread against each other over a message channel, without threads. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind, OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { VolumeExports } from "../../src/attachment/exports.ts";
import type { VolumeExport } from "../../src/attachment/exports.ts";
import { brokenVolume } from "../../src/attachment/broken-device.ts";
import { VolumeWorker } from "../../src/attachment/volume-worker.ts";
import type { HostedConnection, HostedVolume } from "../../src/attachment/volume-worker.ts";
import { threadOf, WorkerPool } from "../../src/attachment/worker-pool.ts";
import type { CallMessage, WorkerMessage } from "../../src/attachment/worker-messages.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import type { VolumeId } from "../../src/volume/identity.ts";
import type { VolumeStatus } from "../../src/volume/status.ts";
import type { OpenRequest } from "../../src/attachment/volume-host.ts";
import { JumpingClock } from "./fakes.ts";

const volumeId = mustVolumeId("vol-1");

/** Delivers copies a turn later, as threads do. */
class Channel {
  #toWorker: ((message: CallMessage) => void)[] = [];
  #toControl: ((message: WorkerMessage) => void)[] = [];
  readonly control = {
    postMessage: (message: CallMessage) => this.#deliver(this.#toWorker, message),
    on: (_event: "message", listener: (message: WorkerMessage) => void) => this.#toControl.push(listener),
  };
  readonly worker = {
    postMessage: (message: WorkerMessage) => this.#deliver(this.#toControl, message),
    on: (_event: "message", listener: (message: CallMessage) => void) => this.#toWorker.push(listener),
  };

  #deliver<Message>(listeners: ((message: Message) => void)[], message: Message): void {
    const copy = structuredClone(message);
    setImmediate(() => listeners.forEach((listener) => listener(copy)));
  }
}

class Thread {
  readonly trace: string[] = [];
  readonly connections: { fd: number; kernel: boolean; received: string; end: (reason: string) => void }[] = [];
  readonly closedFds: number[] = [];
  readonly clock = new JumpingClock();
  readonly pool: WorkerPool;
  openError: OperationError | undefined;
  closeError: OperationError | undefined;
  closeGate: Promise<void> | undefined;
  #listener: ((failure: string) => void) | undefined;

  constructor() {
    const channel = new Channel();
    new VolumeWorker(
      {
        open: (request) => this.#open(request),
        openBroken: brokenVolume,
        connect: (options) => this.#connect(options),
        closeFd: (fd) => this.closedFds.push(fd),
        metrics: async () => [{ name: "x" }],
        stop: async () => void this.trace.push("stop"),
        log: nullLog,
      },
      channel.worker,
    );
    this.pool = new WorkerPool([channel.control]);
  }

  fail(failure: string): void {
    this.#listener?.(failure);
  }

  async settle(): Promise<void> {
    for (let turn = 0; turn < 50; turn += 1) await this.clock.yield();
  }

  async #open({ mode }: OpenRequest): Promise<HostedVolume> {
    this.trace.push(`open ${mode}`);
    await this.clock.yield();
    if (this.openError !== undefined) throw this.openError;
    const device = new MemoryDevice({ sizeBytes: 1024 * 1024 });
    return {
      blockSizeBytes: 512,
      device,
      byteDevice: device,
      status: () => ({ volumeId, dirtyBytes: 5 }) as VolumeStatus,
      drain: async () => void this.trace.push("drain"),
      leave: async () => void this.trace.push("leave"),
      close: async () => {
        this.trace.push("close");
        await this.closeGate;
        const error = this.closeError;
        this.closeError = undefined;
        if (error !== undefined) throw error;
      },
      onFailure: (listener) => {
        this.#listener = listener;
      },
    };
  }

  #connect(options: { fd: number; kernel: boolean; received: Uint8Array }): HostedConnection {
    const { promise, resolve } = Promise.withResolvers<string>();
    const { fd, kernel } = options;
    this.connections.push({ fd, kernel, received: Buffer.from(options.received).toString(), end: resolve });
    return {
      closed: promise,
      drain: async () => void this.trace.push("drain connection"),
      destroy: async () => {
        resolve("destroyed");
        await promise;
      },
    };
  }
}

function openRequest(): OpenRequest {
  const location = { url: "", endpoint: "", region: "" };
  const rights = { mode: "take", clientWaits: false, readOnly: false, durability: "", publication: 0 } as const;
  return { volumeId, location, secrets: {}, ...rights };
}

test("a volume opens, tells its shape and status, and closes", async () => {
  const thread = new Thread();
  const volume = await thread.pool.open(openRequest());
  assert.deepEqual([volume.sizeBytes, volume.blockSizeBytes, volume.readOnly], [1024 * 1024, 512, false]);
  assert.equal((await volume.status()).dirtyBytes, 5);
  await volume.drain();
  await volume.close();
  assert.deepEqual(thread.trace, ["open take", "drain", "close"]);
  await assert.rejects(volume.status(), (error) => isKind(error, "not-found"));
});

test("a volume is open once: a second opening is refused, also while the first goes on", async () => {
  const thread = new Thread();
  const opening = thread.pool.open(openRequest());
  await assert.rejects(thread.pool.open(openRequest()), (error) => isKind(error, "in-use"));
  await opening;
  await assert.rejects(thread.pool.open(openRequest()), (error) => isKind(error, "in-use"));
  assert.deepEqual(thread.trace, ["open take"]);
});

test("an error crosses the threads with its kind and message, and a failed opening can be repeated", async () => {
  const thread = new Thread();
  thread.openError = new OperationError("fenced", "another node owns it", { context: { epoch: 4 } });
  await assert.rejects(
    thread.pool.open(openRequest()),
    (error) => isKind(error, "fenced") && error.message === "another node owns it epoch=4",
  );
  thread.openError = undefined;
  await thread.pool.open(openRequest());
});

test("a connection is served with what was read of it, and its end is told", async () => {
  const thread = new Thread();
  const volume = await thread.pool.open(openRequest());
  const connection = await volume.serve({ fd: 7, received: Buffer.from("abc"), kernel: true });
  assert.deepEqual(
    [thread.connections[0].fd, thread.connections[0].kernel, thread.connections[0].received],
    [7, true, "abc"],
  );
  thread.connections[0].end("the peer left");
  assert.equal(await connection.closed, "the peer left");
  await connection.drain();
});

test("a drain answers what is in flight, then closes", async () => {
  const thread = new Thread();
  const volume = await thread.pool.open(openRequest());
  const connection = await volume.serve({ fd: 7, received: new Uint8Array(0), kernel: true });
  await connection.drain();
  assert.equal(await connection.closed, "destroyed");
  assert.equal(thread.trace.at(-1), "drain connection");
});

test("a descriptor for a volume that is gone is closed", async () => {
  const thread = new Thread();
  const volume = await thread.pool.open(openRequest());
  await volume.close();
  await assert.rejects(volume.serve({ fd: 9, received: new Uint8Array(0), kernel: true }), (error) =>
    isKind(error, "not-found"),
  );
  assert.deepEqual(thread.closedFds, [9]);
});

test("a failure reaches its listener once, also one that comes before it listens", async () => {
  const thread = new Thread();
  const volume = await thread.pool.open(openRequest());
  thread.fail("fenced");
  await thread.settle();
  const heard: string[] = [];
  volume.onFailure((failure) => heard.push(failure));
  thread.fail("again");
  await thread.settle();
  assert.deepEqual(heard, ["fenced"]);
});

test("a broken volume serves errors and closes", async () => {
  const thread = new Thread();
  const broken = { volumeId, sizeBytes: 4096, blockSizeBytes: 4096, readOnly: false, failure: "fenced meanwhile" };
  const volume = await thread.pool.openBroken(broken);
  const { state, failure, neverWritten } = await volume.status();
  assert.deepEqual([state, failure, neverWritten], ["failed", "fenced meanwhile", false]);
  await assert.rejects(volume.drain(), /fenced meanwhile.*unmount and detach/);
  await volume.close();
});

test("volumes stay on their thread for a given number of threads, and spread over all", () => {
  const ids = Array.from({ length: 200 }, (_, index) => mustVolumeId(`vol-${index}`));
  assert.deepEqual(new Set(ids.map((id) => threadOf(id, 4))), new Set([0, 1, 2, 3]));
  assert.equal(threadOf(mustVolumeId("vol-1"), 4), threadOf("vol-1" as VolumeId, 4));
});

function exportsOf(thread: Thread): VolumeExports {
  const listVolumes = async (): Promise<string[]> => ["vol-1"];
  return new VolumeExports({ host: thread.pool, clock: thread.clock, log: nullLog, idleMs: 1000, listVolumes });
}

test("clients of one export share the volume, and the last one's leaving closes it after a while", async () => {
  const thread = new Thread();
  const source = exportsOf(thread);
  const [one, two] = await Promise.all([source.open("vol-1"), source.open("vol-1")]);
  assert.ok(one !== undefined && two !== undefined);
  assert.equal(one.volume, two.volume);
  await one.release();
  await thread.settle();
  assert.deepEqual(thread.trace, ["open take"]);
  await two.release();
  await thread.settle();
  assert.deepEqual(thread.trace, ["open take", "close"]);
  assert.deepEqual(thread.clock.sleeps, [1000]);
});

test("a client that comes back in time finds the volume open, one that comes late opens it anew", async () => {
  const thread = new Thread();
  const source = exportsOf(thread);
  await (await source.open("vol-1"))?.release();
  const again = (await source.open("vol-1")) as VolumeExport;
  await thread.settle();
  assert.deepEqual(thread.trace, ["open take"]);
  await again.release();
  await thread.settle();
  const late = source.open("vol-1");
  assert.equal((await late)?.device.sizeBytes, 1024 * 1024);
  assert.deepEqual(thread.trace, ["open take", "close", "open take"]);
});

test("a client that comes while the volume is being closed waits for that, and opens it anew", async () => {
  const thread = new Thread();
  const source = exportsOf(thread);
  const { promise, resolve } = Promise.withResolvers<void>();
  thread.closeGate = promise;
  await (await source.open("vol-1"))?.release();
  await thread.settle();
  const opening = source.open("vol-1");
  await thread.settle();
  assert.deepEqual(thread.trace, ["open take", "close"]);
  resolve();
  assert.ok((await opening) !== undefined);
  assert.deepEqual(thread.trace, ["open take", "close", "open take"]);
});

test("an export that could not be closed is tried again, and serves in between", async () => {
  const thread = new Thread();
  const source = exportsOf(thread);
  thread.closeError = new OperationError("unavailable", "the store is away");
  await (await source.open("vol-1"))?.release();
  await thread.settle();
  assert.deepEqual(thread.trace, ["open take", "close", "close"]);
});

test("names that are no volumes are unknown, and opening errors reach the client", async () => {
  const thread = new Thread();
  const source = exportsOf(thread);
  assert.deepEqual(await source.list(), ["vol-1"]);
  for (const name of ["", "../../etc/passwd", "Vol", "x".repeat(4096)])
    assert.equal(await source.open(name), undefined);
  assert.deepEqual(thread.trace, []);
  thread.openError = new OperationError("not-found", "no such volume");
  assert.equal(await source.open("vol-1"), undefined);
  thread.openError = new OperationError("corrupt", "damaged");
  await assert.rejects(source.open("vol-1"), (error) => isKind(error, "corrupt"));
});

test("the end closes every export that is open", async () => {
  const thread = new Thread();
  const source = exportsOf(thread);
  await source.open("vol-1");
  await source.close();
  assert.deepEqual(thread.trace, ["open take", "close"]);
});
