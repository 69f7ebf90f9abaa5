/**
 * The gRPC doorways on real unix sockets: CSI controller and node, and the control API of the server. A case is a call
 * with a changed message, a call whose bytes are no message, or bytes that are no HTTP/2 at all. Oracle: an answer of a
 * code that the doorway uses on purpose; never one that says that something unexpected happened; nothing of a secret
 * comes back; and the next well-formed call is served.
 *
 * The data plane behind the node is one that refuses, so that nothing is ever mounted.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, credentials, type ServiceDefinition, type ServiceError, status as code } from "@grpc/grpc-js";
import { controlService } from "../../../src/attachment/control-protocol.ts";
import { ControlServer } from "../../../src/attachment/control-server.ts";
import type { AttachOptions, DataPlane } from "../../../src/attachment/data-plane.ts";
import { crc32 } from "../../../src/base/checksum.ts";
import { OperationError } from "../../../src/base/errors.ts";
import { SeededRandom } from "../../../src/base/seeded-random.ts";
import { systemClock } from "../../../src/base/system-clock.ts";
import { loadCsiServices } from "../../../src/csi/grpc-server.ts";
import { isVolumeId } from "../../../src/volume/identity.ts";
import { mountCapability } from "../../csi/csi-client.ts";
import { startTestController, startTestNode } from "../../csi/plugins.ts";
import { RecordingLog } from "../../csi/recording-log.ts";
import { mutatedJson } from "../json-mutation.ts";
import { mutated } from "../mutation.ts";
import type { FuzzTarget } from "../target.ts";

const CANARY = "canary-3f9c1d";
const secrets = { accessKeyId: "AKIA", secretAccessKey: CANARY };
const publishContext = { publication: "1", readOnly: "false", durability: "s3" };

/** What a doorway may answer: codes.ts of CSI, and what gRPC itself says to bytes that are no message. */
const PLANNED: ReadonlySet<number> = new Set([
  code.OK,
  code.INVALID_ARGUMENT,
  code.NOT_FOUND,
  code.ALREADY_EXISTS,
  code.ABORTED,
  code.FAILED_PRECONDITION,
  code.RESOURCE_EXHAUSTED,
  code.OUT_OF_RANGE,
  code.UNAVAILABLE,
  code.UNIMPLEMENTED,
  code.DATA_LOSS,
]);

/** A message of one method, or bytes in its place. */
interface Call {
  method: string;
  request: unknown;
}

interface Doorway {
  service: ServiceDefinition;
  socketPath: string;
  /** Well-formed calls; the first one must always succeed. */
  calls: readonly Call[];
  log: RecordingLog;
  close: () => Promise<void>;
}

function callsTarget(name: string, doorway: Doorway): FuzzTarget {
  const client = new Client(`unix:${doorway.socketPath}`, credentials.createInsecure());
  let cases = 0;
  const probe = doorway.calls[0];
  return {
    name,
    seeds: doorway.calls.map((call) => Buffer.from(JSON.stringify(call))),
    mutate: mutatedJson,
    memoryBytes: 64 * 1024 * 1024,
    async run(input) {
      const { method, bytes, isMessage } = encodeCall(doorway, input);
      const answer = await unary(client, doorway.service[method].path, bytes);
      checkAnswer(answer, isMessage);
      const mayRepeat = !isMessage || isSecretElsewhere(input);
      assert.ok(mayRepeat || !answer.details.includes(CANARY), "a secret comes back");
      cases += 1;
      if (cases % 16 === 0) {
        const path = doorway.service[probe.method].path;
        const served = await unary(client, path, doorway.service[probe.method].requestSerialize(probe.request));
        assert.equal(served.code, code.OK, `the next call is not served: ${served.details}`);
      }
      for (const line of doorway.log.lines.splice(0)) {
        assert.ok(!line.includes("unexpectedly") && !line.includes('"outcome":"bug"'), line);
        assert.ok(mayRepeat || !line.includes(CANARY), "a secret is in the log");
      }
      return code[answer.code];
    },
    async close() {
      client.close();
      await doorway.close();
    },
  };
}

/** The method and the bytes of a call. What is no call decides how the encoded message of a sound one is changed. */
function encodeCall(doorway: Doorway, input: Buffer): { method: string; bytes: Buffer; isMessage: boolean } {
  try {
    const { method, request } = JSON.parse(input.toString()) as Call;
    if (Object.hasOwn(doorway.service, method)) {
      return { method, bytes: doorway.service[method].requestSerialize(request), isMessage: true };
    }
  } catch {
    // No JSON, or a value that no message of this method can hold.
  }
  const random = new SeededRandom(crc32(input));
  const { method, request } = doorway.calls[random.below(doorway.calls.length)];
  const message = doorway.service[method].requestSerialize(request);
  const bytes = random.below(4) === 0 ? input : mutated(message, random, [input]);
  return { method, bytes, isMessage: false };
}

/** Whether a change has put the secret where no secret belongs, such as into the name of a volume. */
function isSecretElsewhere(input: Buffer): boolean {
  const { request } = JSON.parse(input.toString()) as { request: { secrets?: unknown } | null };
  const { secrets: given, ...rest } = request ?? {};
  const names = typeof given === "object" && given !== null ? Object.keys(given) : [given];
  return JSON.stringify([rest, names]).includes(CANARY);
}

interface Answer {
  code: number;
  details: string;
}

function unary(client: Client, path: string, bytes: Buffer): Promise<Answer> {
  return new Promise((resolve) => {
    client.makeUnaryRequest(
      path,
      (value: Buffer) => value,
      (value: Buffer) => value,
      bytes,
      (error: ServiceError | null) => {
        resolve(error === null ? { code: code.OK, details: "" } : { code: error.code, details: error.details });
      },
    );
  });
}

function checkAnswer(answer: Answer, isMessage: boolean): void {
  const { details } = answer;
  const isUndecodable = answer.code === code.INTERNAL && !isMessage;
  assert.ok(PLANNED.has(answer.code) || isUndecodable, `answered ${code[answer.code]}: ${details}`);
  assert.doesNotMatch(details, /did not expect/);
  assert.ok(details.length <= 2048 && !/\n\s+at /.test(details), "a stack comes back");
}

async function csiController(): Promise<FuzzTarget> {
  const { socketPath, log, close } = await startTestController();
  const volumeId = "vol-ca978112ca1bbdcafac231b39a23dc4d";
  const calls = [
    { method: "ControllerGetCapabilities", request: {} },
    {
      method: "CreateVolume",
      request: {
        name: "a",
        capacityRange: { requiredBytes: "1048576", limitBytes: "2097152" },
        volumeCapabilities: [mountCapability],
        parameters: { durability: "local", "csi.storage.k8s.io/pvc/name": "c" },
        secrets,
      },
    },
    {
      method: "CreateVolume",
      request: { name: "b", volumeCapabilities: [mountCapability], parameters: { bucket: "bucket" }, secrets },
    },
    {
      method: "ControllerPublishVolume",
      request: { volumeId, nodeId: "node-1", volumeCapability: mountCapability, secrets },
    },
    { method: "ControllerUnpublishVolume", request: { volumeId, nodeId: "node-1", secrets } },
    { method: "ValidateVolumeCapabilities", request: { volumeId, volumeCapabilities: [mountCapability], secrets } },
    { method: "ListVolumes", request: { maxEntries: 2, startingToken: "" } },
    { method: "DeleteVolume", request: { volumeId, secrets } },
  ];
  return callsTarget("csi-controller", { service: loadCsiServices().Controller, socketPath, calls, log, close });
}

/** Nothing is attached, and nothing can be. */
const refusingDataPlane: DataPlane = {
  attach: (options: AttachOptions) => {
    assert.ok(isVolumeId(options.volumeId) && Number.isSafeInteger(options.publication));
    return Promise.reject(new OperationError("unavailable", "no volume is attached here"));
  },
  detach: () => Promise.resolve(),
  getAttachment: () => Promise.resolve(undefined),
  listAttachments: () => Promise.resolve([]),
  flush: () => Promise.resolve(),
};

async function csiNode(): Promise<FuzzTarget> {
  const { socketPath, log, kubeletDir, close } = await startTestNode(refusingDataPlane);
  const volumeId = "vol-1";
  const stagingTargetPath = join(kubeletDir, "staging");
  const targetPath = join(kubeletDir, "target");
  const common = { volumeId, publishContext, volumeCapability: mountCapability, secrets, stagingTargetPath };
  const calls = [
    { method: "NodeGetInfo", request: {} },
    { method: "NodeStageVolume", request: common },
    { method: "NodePublishVolume", request: { ...common, targetPath, readonly: true } },
    { method: "NodeUnpublishVolume", request: { volumeId, targetPath } },
    { method: "NodeUnstageVolume", request: { volumeId, stagingTargetPath } },
    { method: "NodeGetVolumeStats", request: { volumeId, volumePath: targetPath, stagingTargetPath } },
  ];
  return callsTarget("csi-node", { service: loadCsiServices().Node, socketPath, calls, log, close });
}

async function startControl(): Promise<Doorway> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-fuzz-"));
  const socketPath = join(directory, "control.sock");
  const log = new RecordingLog();
  const server = new ControlServer({ socketPath, dataPlane: refusingDataPlane, log, clock: systemClock });
  await server.listen();
  const volumeId = "vol-1";
  const location = { url: "s3://b/p", endpoint: "http://h:1", region: "r" };
  const calls = [
    { method: "ListAttachments", request: {} },
    { method: "Attach", request: { volumeId, location, secrets, readOnly: true, durability: "s3", publication: "3" } },
    { method: "Detach", request: { volumeId } },
    { method: "GetAttachment", request: { volumeId } },
    { method: "Flush", request: { volumeId } },
  ];
  const close = async (): Promise<void> => {
    await server.close();
    await rm(directory, { recursive: true });
  };
  return { service: controlService(), socketPath, calls, log, close };
}

async function controlApi(): Promise<FuzzTarget> {
  return callsTarget("control-api", await startControl());
}

/** Bytes on the socket below gRPC: the preface of HTTP/2 and frames, changed. */
async function http2(): Promise<FuzzTarget> {
  const doorway = await startControl();
  const client = new Client(`unix:${doorway.socketPath}`, credentials.createInsecure());
  const { path, requestSerialize } = doorway.service.ListAttachments;
  const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  const settings = Buffer.from("000006040000000000000300000064", "hex");
  const headers = Buffer.from("00000401050000000182868441", "hex");
  const data = Buffer.from("0000050001000000010000000000", "hex");
  return {
    name: "grpc-http2",
    seeds: [
      Buffer.concat([preface, settings, headers, data]),
      Buffer.concat([preface, settings, Buffer.from("0000080600000000000102030405060708", "hex")]),
    ],
    mutate: (input, random, others) =>
      random.below(2) === 0 ? mutated(input, random, others) : afterPreface(input, random, others),
    memoryBytes: 64 * 1024 * 1024,
    async run(input) {
      const socket = connect(doorway.socketPath);
      socket.on("error", () => undefined);
      const closed = once(socket, "close");
      socket.resume().end(input);
      await new Promise((resolve) => setImmediate(resolve));
      const served = await unary(client, path, requestSerialize({}));
      assert.equal(served.code, code.OK, `another client is not served: ${served.details}`);
      socket.destroy();
      await closed;
      return "served";
    },
    async close() {
      client.close();
      await doorway.close();
    },
  };

  function afterPreface(input: Buffer, random: Parameters<typeof mutated>[1], others: readonly Buffer[]): Buffer {
    return Buffer.concat([preface, mutated(input.subarray(preface.length), random, others)]);
  }
}

export const grpcTargets = {
  "csi-controller": csiController,
  "csi-node": csiNode,
  "control-api": controlApi,
  "grpc-http2": http2,
} as const;
