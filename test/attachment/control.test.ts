/** The control API over a real unix socket, with a data plane that records and fails at will. */
import assert from "node:assert/strict";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { nullLog } from "../../src/base/log.ts";
import type { Log, LogFields } from "../../src/base/log.ts";
import { isKind, OperationError } from "../../src/base/errors.ts";
import type { ErrorKind } from "../../src/base/errors.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { ControlClient } from "../../src/attachment/control-client.ts";
import { ControlServer } from "../../src/attachment/control-server.ts";
import type { Attachment, AttachOptions, DataPlane } from "../../src/attachment/data-plane.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { attachOptions } from "./fakes.ts";

const volumeId = mustVolumeId("vol-1");
const attachment: Attachment = {
  volumeId,
  state: "attached",
  devicePath: "/dev/nbd300",
  sizeBytes: 64 * 1024 ** 4,
  blockSizeBytes: 512,
  readOnly: true,
  neverWritten: true,
  epoch: 2 ** 52,
  dirtyBytes: 123_456_789_012,
  behindSeconds: 1.25,
  failure: "",
};

class ScriptedDataPlane implements DataPlane {
  calls: unknown[] = [];
  failure: Error | undefined;
  hang: Promise<void> | undefined;

  async attach(options: AttachOptions): Promise<Attachment> {
    await this.#record(["attach", options]);
    return attachment;
  }

  async detach(id: string): Promise<void> {
    await this.#record(["detach", id]);
  }

  async getAttachment(id: string): Promise<Attachment | undefined> {
    await this.#record(["get", id]);
    return id === volumeId ? attachment : undefined;
  }

  async listAttachments(): Promise<Attachment[]> {
    await this.#record(["list"]);
    return [attachment, { ...attachment, state: "failed", failure: "fenced" }];
  }

  async flush(id: string): Promise<void> {
    await this.#record(["flush", id]);
  }

  async #record(call: unknown): Promise<void> {
    this.calls.push(call);
    await this.hang;
    if (this.failure !== undefined) throw this.failure;
  }
}

const lines: string[] = [];
const keepLine = (message: string, fields?: LogFields): void => {
  lines.push(JSON.stringify({ message, ...fields }));
};
const log: Log = { ...nullLog, debug: keepLine, info: keepLine, warn: keepLine, error: keepLine, child: () => log };

let directory: string;
let socketPath: string;
let plane: ScriptedDataPlane;
let server: ControlServer;
let client: ControlClient;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "control-"));
  socketPath = join(directory, "run", "control.sock");
  plane = new ScriptedDataPlane();
  server = new ControlServer({ socketPath, dataPlane: plane, log, clock: systemClock });
  await server.listen();
  client = new ControlClient({ socketPath });
});

after(async () => {
  client.close();
  await server.close();
  await rm(directory, { recursive: true });
});

test("every call arrives with its arguments, and its answer comes back whole", async () => {
  const options = attachOptions({
    location: { url: "s3://bucket/prefix", endpoint: "http://127.0.0.1:9000", region: "eu-1" },
    secrets: { accessKeyId: "key", secretAccessKey: "canary-secret" },
    readOnly: true,
    durability: "local",
    publication: 2 ** 50,
  });
  plane.calls = [];
  assert.deepEqual(await client.attach(options), attachment);
  assert.deepEqual(await client.getAttachment(volumeId), attachment);
  assert.equal(await client.getAttachment(mustVolumeId("other")), undefined);
  assert.deepEqual(
    (await client.listAttachments()).map(({ state, failure }) => [state, failure]),
    [
      ["attached", ""],
      ["failed", "fenced"],
    ],
  );
  await client.detach(volumeId);
  await client.flush(volumeId);
  assert.deepEqual(plane.calls, [
    ["attach", options],
    ["get", "vol-1"],
    ["get", "other"],
    ["list"],
    ["detach", "vol-1"],
    ["flush", "vol-1"],
  ]);
});

for (const kind of [
  "invalid",
  "not-found",
  "conflict",
  "busy",
  "in-use",
  "exhausted",
  "unavailable",
  "fenced",
  "corrupt",
] satisfies ErrorKind[]) {
  test(`an error of kind ${kind} survives the wire`, async () => {
    plane.failure = new OperationError(kind, "something is not as it should be", { context: { nodeId: "nöde" } });
    const expected = (error: unknown): boolean =>
      isKind(error, kind) && error.message === "something is not as it should be nodeId=nöde";
    await assert.rejects(client.flush(volumeId), expected);
    plane.failure = undefined;
  });
}

test("a bug of the server comes out as unavailable, without its text", async () => {
  plane.failure = new TypeError("cannot read internals");
  await assert.rejects(
    client.flush(volumeId),
    (error) => isKind(error, "unavailable") && !/internals/.test(error.message),
  );
  plane.failure = undefined;
});

test("a secret of the request comes back neither in an error nor in the log", async () => {
  const secrets = { secretAccessKey: "canary-1234567890" };
  plane.failure = new OperationError("invalid", "the store refused key canary-1234567890");
  await assert.rejects(
    client.attach(attachOptions({ secrets })),
    (error) => isKind(error, "invalid") && !/canary-1/.test(String(error)),
  );
  plane.failure = undefined;
  await assert.rejects(client.attach(attachOptions({ secrets: { "canary-key": "x" } })), /no other key/);
  await assert.rejects(
    client.attach(attachOptions({ secrets: { sessionToken: "canary-1234567890\n" } })),
    /sessionToken is malformed$|sessionToken is malformed volumeId/,
  );
  assert.equal(lines.join("").includes("canary-1234567890"), false);
});

for (const [name, options] of [
  ["volume id of dots", { volumeId: "../etc" }],
  ["empty volume id", { volumeId: "" }],
  ["durability", { durability: "none" }],
  ["location with a newline", { location: { url: "s3://a\nb", endpoint: "", region: "" } }],
  ["negative publication", { publication: -1 }],
] as const) {
  test(`a malformed ${name} is refused before it reaches the data plane`, async () => {
    plane.calls = [];
    const malformed = { ...attachOptions(), ...options } as unknown as AttachOptions;
    await assert.rejects(client.attach(malformed), (error) => isKind(error, "invalid", "unavailable"));
    assert.deepEqual(plane.calls, []);
  });
}

test("the socket is open to its owner alone", async () => {
  assert.equal((await stat(socketPath)).mode & 0o777, 0o600);
  assert.equal((await stat(join(directory, "run"))).mode & 0o777, 0o700);
});

test("a second server on a live socket is refused, and the first goes on", async () => {
  const second = new ControlServer({ socketPath, dataPlane: plane, log, clock: systemClock });
  await assert.rejects(second.listen(), (error) => isKind(error, "in-use"));
  await client.detach(volumeId);
});

test("a caller that gives up gets unavailable while the call goes on", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  plane.hang = promise;
  plane.calls = [];
  const abort = new AbortController();
  const calling = client.flush(volumeId, abort.signal);
  while (plane.calls.length === 0) await systemClock.yield();
  abort.abort();
  await assert.rejects(calling, /has not answered in time/);
  const impatient = new ControlClient({ socketPath, deadlineMs: 20 });
  await assert.rejects(impatient.flush(volumeId), (error) => isKind(error, "unavailable"));
  impatient.close();
  plane.hang = undefined;
  resolve();
});

test("a server that is not there is unavailable, and a stale socket does not hinder the next one", async () => {
  const other = join(directory, "other.sock");
  await writeFile(other, "");
  const early = new ControlClient({ socketPath: other });
  await assert.rejects(early.listAttachments(), /check that s3block server runs here/);
  const late = new ControlServer({ socketPath: other, dataPlane: plane, log, clock: systemClock });
  await late.listen();
  for (;;) {
    const list = await early.listAttachments().catch((error: unknown) => error);
    if (Array.isArray(list)) break;
    assert.ok(isKind(list, "unavailable"));
    await systemClock.sleep(20);
  }
  early.close();
  await late.close();
});
