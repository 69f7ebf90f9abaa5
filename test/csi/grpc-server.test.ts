/** The socket, what every call logs, and that no secret ever leaves by a log or an answer. */
import assert from "node:assert/strict";
import { link, mkdtemp, rename, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type ServiceError, status as code } from "@grpc/grpc-js";
import { type ErrorKind, isKind, OperationError } from "../../src/base/errors.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { type Handlers, serveCsi, type ServiceName } from "../../src/csi/grpc-server.ts";
import { ControllerService } from "../../src/csi/controller.ts";
import { NodeService } from "../../src/csi/node.ts";
import type { DataPlane } from "../../src/attachment/data-plane.ts";
import { CsiClient, mountCapability } from "./csi-client.ts";
import { MemoryCatalogs, startTestController } from "./plugins.ts";
import { RecordingLog } from "./recording-log.ts";

const clock = systemClock;

async function temporary(context: { after(done: () => Promise<void>): void }): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-grpc-"));
  context.after(() => rm(directory, { recursive: true }));
  return directory;
}

async function serve(
  context: { after(done: () => Promise<void>): void },
  services: Partial<Record<ServiceName, Handlers>>,
): Promise<{ client: CsiClient; log: RecordingLog; socketPath: string }> {
  const socketPath = join(await temporary(context), "csi.sock");
  const log = new RecordingLog();
  const server = await serveCsi({ socketPath, services, log, clock });
  const client = new CsiClient(socketPath);
  context.after(async () => {
    client.close();
    await server.close();
  });
  return { client, log, socketPath };
}

test("the socket is for its owner alone, in a directory for its owner alone", async (context) => {
  const directory = join(await temporary(context), "plugin");
  const socketPath = join(directory, "csi.sock");
  const server = await serveCsi({ socketPath, services: {}, log: new RecordingLog(), clock });
  context.after(() => server.close());
  assert.equal((await stat(socketPath)).mode & 0o777, 0o600);
  assert.equal((await stat(directory)).mode & 0o777, 0o700);
  await server.close();
  await server.close();
  await assert.rejects(stat(socketPath));
});

test("the socket of a dead process is replaced", async (context) => {
  const socketPath = join(await temporary(context), "csi.sock");
  const dead = createServer();
  await new Promise<void>((resolve) => dead.listen(socketPath, resolve));
  const keep = `${socketPath}.kept`;
  await link(socketPath, keep);
  await new Promise((resolve) => dead.close(resolve));
  await rename(keep, socketPath);
  const server = await serveCsi({ socketPath, services: {}, log: new RecordingLog(), clock });
  await server.close();
});

test("the socket of a living process and a file that is no socket stay as they are", async (context) => {
  const controller = await startTestController();
  context.after(() => controller.close());
  const options = { services: {}, log: new RecordingLog(), clock };
  await assert.rejects(serveCsi({ ...options, socketPath: controller.socketPath }), (error) =>
    isKind(error, "conflict"),
  );
  assert.equal(await controller.client.codeOf("Identity", "probe"), code.OK);
  const file = join(await temporary(context), "file");
  await writeFile(file, "data");
  await assert.rejects(serveCsi({ ...options, socketPath: file }), (error) => isKind(error, "conflict"));
  assert.equal((await stat(file)).size, 4);
});

test("every call is one line with operation, volume, duration and code", async (context) => {
  const { client, log } = await serve(context, {
    Controller: {
      deleteVolume: async () => ({}),
      controllerUnpublishVolume: async () => {
        throw new OperationError("in-use", "held by another node", { context: { nodeId: "n" } });
      },
      createVolume: async () => {
        throw new TypeError("boom");
      },
    },
  });
  await client.call("Controller", "deleteVolume", { volumeId: "vol-1" });
  assert.equal(
    await client.codeOf("Controller", "controllerUnpublishVolume", { volumeId: "vol-2" }),
    code.FAILED_PRECONDITION,
  );
  assert.equal(await client.codeOf("Controller", "createVolume", { name: "x" }), code.UNAVAILABLE);
  const lines = log.lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.deepEqual(
    lines.map(({ level, operation, volumeId, code: answer }) => [level, operation, volumeId, answer]),
    [
      ["info", "DeleteVolume", "vol-1", "OK"],
      ["warn", "ControllerUnpublishVolume", "vol-2", "FAILED_PRECONDITION"],
      ["error", "CreateVolume", undefined, "UNAVAILABLE"],
    ],
  );
  assert.ok(lines.every(({ durationMs }) => typeof durationMs === "number"));
  assert.equal(lines[1].error, "held by another node nodeId=n");
});

const canary = "canary-5f1d0c7e";
const kinds: ErrorKind[] = [
  "invalid",
  "not-found",
  "conflict",
  "busy",
  "in-use",
  "exhausted",
  "unavailable",
  "fenced",
  "corrupt",
];

/** A data plane that fails with whatever it was given, secrets included. */
function failingDataPlane(error: () => Error): DataPlane {
  const fail = async (): Promise<never> => {
    throw error();
  };
  return { attach: fail, detach: fail, getAttachment: fail, listAttachments: fail, flush: fail };
}

test("no secret of a request is logged or answered, whatever call fails in whatever way", async (context) => {
  const catalogLog = new RecordingLog();
  const catalogs = new MemoryCatalogs(catalogLog);
  let failure: Error = new Error("unset");
  const log = new RecordingLog();
  const controller = new ControllerService({
    catalogFor: async () => {
      throw failure;
    },
    isKnownNode: async () => true,
    log,
  });
  const kubeletDir = await temporary(context);
  const dataPlane = failingDataPlane(() => failure);
  const options = { nodeId: "n", maxVolumesPerNode: 1, kubeletDir, dataPlane, clock, log };
  const node = new NodeService(options);
  const { client, log: callLog } = await serve(context, { Controller: controller.handlers(), Node: node.handlers() });
  const secrets = { accessKeyId: canary, secretAccessKey: canary, sessionToken: canary, other: canary };
  const volumeId = `vol-${"1".repeat(32)}`;
  const staging = { volumeId, stagingTargetPath: join(kubeletDir, "staging"), volumeCapability: mountCapability };
  const publishContext = { publication: "1", readOnly: "false", durability: "s3" };
  const calls: [ServiceName, string, object][] = [
    ["Controller", "createVolume", { name: "n", volumeCapabilities: [mountCapability], secrets }],
    [
      "Controller",
      "createVolume",
      { name: "n", volumeCapabilities: [mountCapability], secrets, parameters: { bad: canary } },
    ],
    [
      "Controller",
      "createVolume",
      { name: "n", volumeCapabilities: [mountCapability], secrets, parameters: { bucket: canary.toUpperCase() } },
    ],
    ["Controller", "deleteVolume", { volumeId, secrets }],
    ["Controller", "controllerPublishVolume", { volumeId, nodeId: "n", volumeCapability: mountCapability, secrets }],
    ["Controller", "controllerUnpublishVolume", { volumeId, nodeId: "n", secrets }],
    ["Controller", "validateVolumeCapabilities", { volumeId, volumeCapabilities: [mountCapability], secrets }],
    ["Node", "nodeStageVolume", { ...staging, publishContext, secrets }],
    ["Node", "nodeStageVolume", { ...staging, secrets }],
    [
      "Node",
      "nodeStageVolume",
      { ...staging, volumeCapability: { mount: { mountFlags: [`pw=${canary}`] }, accessMode: { mode: 1 } }, secrets },
    ],
    ["Node", "nodePublishVolume", { ...staging, targetPath: join(kubeletDir, "t"), secrets }],
    ["Node", "nodePublishVolume", { ...staging, targetPath: "relative", secrets: { accessKeyId: `${canary}\n` } }],
  ];
  const failures = [
    ...kinds.map(
      (kind) =>
        new OperationError(kind, `rejected for ${canary}`, { cause: new Error(canary), context: { key: canary } }),
    ),
    new TypeError(`cannot read ${canary}`),
  ];
  for (failure of failures) {
    for (const [service, method, request] of calls) {
      const error = await client.call(service, method, request).catch((cause: unknown) => cause as ServiceError);
      assert.ok(error instanceof Error, `${method} should fail`);
      const answered = JSON.stringify([error.message, error.details, (error.metadata as object | undefined) ?? null]);
      assert.ok(!answered.includes(canary), `${method} answered the secret: ${answered}`);
    }
  }
  for (const line of [...callLog.lines, ...log.lines, ...catalogLog.lines]) assert.ok(!line.includes(canary), line);
  assert.ok(callLog.lines.length >= failures.length * calls.length);
  assert.equal(catalogs.stores.size, 0);
});
