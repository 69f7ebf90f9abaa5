/**
 * The control API on the wire: proto/nbd-server.proto's messages as types, and their translation to and from the data
 * plane's. Both ends use this file, so that they cannot drift apart.
 * Validated here, once, at the doorway: a message that comes out of a decoder can be trusted.
 * Numbers of 64 bits travel as decimal text and are narrowed with a check.
 */
import { fileURLToPath } from "node:url";
import type { GrpcObject, MethodDefinition, ServiceDefinition } from "@grpc/grpc-js";
import { loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { assert } from "../base/assert.ts";
import { OperationError } from "../base/errors.ts";
import { mustVolumeId } from "../volume/identity.ts";
import type { VolumeId } from "../volume/identity.ts";
import type { Attachment, AttachmentState, AttachOptions } from "./data-plane.ts";

export interface VolumeMessage {
  volumeId: string;
}

export interface AttachMessage extends VolumeMessage {
  location: { url: string; endpoint: string; region: string } | null;
  secrets: Record<string, string>;
  readOnly: boolean;
  durability: string;
  publication: string;
}

export interface AttachmentMessage extends VolumeMessage {
  state: string;
  devicePath: string;
  sizeBytes: string;
  blockSizeBytes: number;
  readOnly: boolean;
  neverWritten: boolean;
  epoch: string;
  dirtyBytes: string;
  behindSeconds: number;
  failure: string;
}

export type MethodName = "Attach" | "Detach" | "GetAttachment" | "ListAttachments" | "Flush";

const protoPath = fileURLToPath(new URL("../../proto/nbd-server.proto", import.meta.url));
const maxTextBytes = 4096;
const secretKeys: readonly string[] = ["accessKeyId", "secretAccessKey", "sessionToken"];

/** The service's definition for either end of grpc-js. */
export function controlService(): ServiceDefinition {
  const definition = loadSync(protoPath, { longs: String, enums: String, defaults: true, oneofs: true });
  const loaded = loadPackageDefinition(definition) as { s3block?: { v1?: GrpcObject } };
  const constructor = loaded.s3block?.v1?.NbdServer as { service?: ServiceDefinition } | undefined;
  assert(constructor?.service !== undefined, "proto/nbd-server.proto defines s3block.v1.NbdServer");
  return constructor.service;
}

export function mustMethod(service: ServiceDefinition, name: MethodName): MethodDefinition<object, object> {
  const method = service[name] as MethodDefinition<object, object> | undefined;
  assert(method !== undefined, `proto/nbd-server.proto has a method ${name}`);
  return method;
}

/** The id of a message of the other side; throws "invalid". */
export function decodeVolumeId(message: VolumeMessage): VolumeId {
  return mustVolumeId(message.volumeId);
}

export function encodeAttach(options: AttachOptions): AttachMessage {
  return { ...options, secrets: { ...options.secrets }, publication: String(options.publication) };
}

/** Throws "invalid", and never repeats a secret. */
export function decodeAttach(message: AttachMessage): AttachOptions {
  const location = message.location ?? { url: "", endpoint: "", region: "" };
  for (const [name, text] of Object.entries({ ...location })) {
    if (text.length > maxTextBytes || /[\x00-\x20\x7f]/.test(text))
      throw invalid(message, `location.${name} is malformed`);
  }
  const { durability } = message;
  if (durability !== "" && durability !== "s3" && durability !== "local") {
    throw invalid(message, "durability is s3, local or empty");
  }
  for (const [key, value] of Object.entries(message.secrets)) {
    if (!secretKeys.includes(key)) {
      throw invalid(
        message,
        `secrets may hold ${secretKeys.join(", ")}, and no other key (${JSON.stringify(key.slice(0, 64))})`,
      );
    }
    if (value.length > maxTextBytes || /[\x00-\x20\x7f]/.test(value))
      throw invalid(message, `the secret ${key} is malformed`);
  }
  return {
    volumeId: decodeVolumeId(message),
    location: { url: location.url, endpoint: location.endpoint, region: location.region },
    secrets: { ...message.secrets },
    readOnly: message.readOnly,
    durability,
    publication: narrow(message, "publication", message.publication),
  };
}

const stateNames: Readonly<Record<AttachmentState, string>> = {
  opening: "OPENING",
  serving: "SERVING",
  attached: "ATTACHED",
  detaching: "DETACHING",
  failed: "FAILED",
};

export function encodeAttachment(attachment: Attachment): AttachmentMessage {
  return {
    ...attachment,
    state: stateNames[attachment.state],
    sizeBytes: String(attachment.sizeBytes),
    epoch: String(attachment.epoch),
    dirtyBytes: String(attachment.dirtyBytes),
  };
}

export function decodeAttachment(message: AttachmentMessage): Attachment {
  const state = (Object.keys(stateNames) as AttachmentState[]).find((name) => stateNames[name] === message.state);
  if (state === undefined) throw invalid(message, "the state is unknown: server and client are of different versions");
  return {
    volumeId: decodeVolumeId(message),
    state,
    devicePath: message.devicePath,
    sizeBytes: narrow(message, "sizeBytes", message.sizeBytes),
    blockSizeBytes: message.blockSizeBytes,
    readOnly: message.readOnly,
    neverWritten: message.neverWritten,
    epoch: narrow(message, "epoch", message.epoch),
    dirtyBytes: narrow(message, "dirtyBytes", message.dirtyBytes),
    behindSeconds: message.behindSeconds,
    failure: message.failure,
  };
}

function narrow(message: VolumeMessage, name: string, text: string): number {
  const value = Number(text);
  if (/^\d{1,16}$/.test(text) && Number.isSafeInteger(value)) return value;
  throw invalid(message, `${name} is out of range`);
}

function invalid(message: VolumeMessage, what: string): OperationError {
  return new OperationError("invalid", what, { context: { volumeId: JSON.stringify(message.volumeId.slice(0, 128)) } });
}
