/**
 * Control records (docs/format.md, "Control records"): an envelope around a JSON object. Small, rare and read by
 * people too, hence JSON. Every field is validated; unknown fields are tolerated and dropped, so that a newer version
 * may add some, while values that change what an older one must do (codec, encryption) are refused.
 *
 *   meta, tombstone: epoch 0, sequence = number            epoch claim: epoch, sequence 0
 *   confirmation, removal: epoch 0, sequence 1             publication: epoch 0, sequence = number
 *   location: uid zero, epoch 0, sequence 0
 */
import type { ErrorContext } from "../../base/errors.ts";
import {
  BLOCK_BYTES,
  type Durability,
  type Epoch,
  isVolumeId,
  MAX_VOLUME_BYTES,
  MIN_VOLUME_BYTES,
  type VolumeId,
  type VolumeUid,
} from "../identity.ts";
import { decodeEnvelope, encodeEnvelope, ENVELOPE_BYTES, type ExpectedEnvelope, peekEnvelope } from "./envelope.ts";
import { corrupt, NO_VOLUME_UID, writtenByNewer } from "./fields.ts";

const MAX_SECTION_BYTES = 1024 * 1024;
const hex32 = /^[0-9a-f]{32}$/;

export interface VolumeMeta {
  id: VolumeId;
  uid: VolumeUid;
  /** Of this record: among those of its name where it binds the name, else among those of its uid. */
  number: number;
  /** What the creator called it; up to the creator. */
  name: string;
  sizeBytes: number;
  blockSizeBytes: 512 | 4096;
  durability: Durability;
  codec: "none";
  encryption: null;
  /** Uids of ancestors, nearest first. */
  lineage: VolumeUid[];
  createdMs: number;
  fsType?: string;
  parameters: Readonly<Record<string, string>>;
  /** The volume is being deleted: nothing may be read or written any more. */
  deleted: boolean;
}

/** Frees a name from the volume `uid`, whose record of the name has the number `frees`. */
export interface NameTombstone {
  uid: VolumeUid;
  /** Of this record, above `frees`. */
  number: number;
  frees: number;
  timeMs: number;
}

/** Decides once whether a volume has the name that a record binds to it. */
export interface Confirmation {
  confirmed: boolean;
  timeMs: number;
}

export interface EpochClaim {
  epoch: Epoch;
  nodeId: string;
  /** 32 hex digits. */
  journalId: string;
  /** Number of the publication that the claim rests on; 0 = none. */
  publication: number;
  timeMs: number;
}

export interface PublicationRecord {
  number: number;
  /** Null: released. */
  nodeId: string | null;
  readOnly: boolean;
  timeMs: number;
}

export interface LocationRecord {
  /** "s3://bucket/prefix" or "file:///directory". */
  url: string;
  /** Empty: the vendor's own. */
  endpoint: string;
  region: string;
}

export function encodeMeta(nonce: Buffer, meta: VolumeMeta): Buffer {
  const fields = {
    id: meta.id,
    name: meta.name,
    sizeBytes: meta.sizeBytes,
    blockSizeBytes: meta.blockSizeBytes,
    durability: meta.durability,
    codec: meta.codec,
    encryption: meta.encryption,
    lineage: meta.lineage,
    createdMs: meta.createdMs,
    fsType: meta.fsType,
    parameters: meta.parameters,
    deleted: meta.deleted ? true : undefined,
  };
  return encodeJson({ kind: "meta", uid: meta.uid, epoch: 0, sequence: meta.number, nonce }, fields);
}

export function decodeMeta(bytes: Buffer, expected: { id: VolumeId; number: number }): VolumeMeta {
  const { uid, fields } = decodeJson(bytes, { kind: "meta", epoch: 0, sequence: expected.number });
  const id = fields.text("id");
  if (!isVolumeId(id) || id !== expected.id) throw corrupt("metadata is of another volume", { expected: expected.id });
  if (fields.optional("codec") !== "none") throw writtenByNewer("volume with compression");
  if (fields.optional("encryption") !== null) throw writtenByNewer("volume with encryption");
  const sizeBytes = fields.count("sizeBytes");
  if (sizeBytes % BLOCK_BYTES !== 0 || sizeBytes < MIN_VOLUME_BYTES || sizeBytes > MAX_VOLUME_BYTES) {
    throw fields.invalid("sizeBytes");
  }
  const fsType = fields.optional("fsType");
  if (fsType !== undefined && typeof fsType !== "string") throw fields.invalid("fsType");
  const deleted = fields.optional("deleted");
  if (deleted !== undefined && deleted !== true) throw fields.invalid("deleted");
  return {
    id,
    uid,
    number: expected.number,
    name: fields.text("name"),
    sizeBytes,
    blockSizeBytes: fields.oneOf("blockSizeBytes", [512, 4096]),
    durability: fields.oneOf("durability", ["s3", "local"]),
    codec: "none",
    encryption: null,
    lineage: fields.uids("lineage"),
    createdMs: fields.count("createdMs"),
    ...(fsType === undefined ? {} : { fsType }),
    parameters: fields.texts("parameters"),
    deleted: deleted === true,
  };
}

export function encodeTombstone(nonce: Buffer, id: VolumeId, tombstone: NameTombstone): Buffer {
  const { uid, number, frees, timeMs } = tombstone;
  return encodeJson({ kind: "tombstone", uid, epoch: 0, sequence: number, nonce }, { id, frees, timeMs });
}

export function decodeTombstone(bytes: Buffer, expected: { id: VolumeId; number: number }): NameTombstone {
  const { uid, fields } = decodeJson(bytes, { kind: "tombstone", epoch: 0, sequence: expected.number });
  if (fields.text("id") !== expected.id) throw corrupt("tombstone is of another name", { expected: expected.id });
  const frees = fields.count("frees");
  if (frees < 1 || frees >= expected.number) throw fields.invalid("frees");
  return { uid, number: expected.number, frees, timeMs: fields.count("timeMs") };
}

/** What stands under a number of a name: metadata, which binds the name to its volume, or a tombstone. */
export function decodeNameRecord(
  bytes: Buffer,
  expected: { id: VolumeId; number: number },
): { meta: VolumeMeta } | { tombstone: NameTombstone } {
  if (peekEnvelope(bytes).kind === "tombstone") return { tombstone: decodeTombstone(bytes, expected) };
  return { meta: decodeMeta(bytes, expected) };
}

export function encodeConfirmation(header: { uid: VolumeUid; nonce: Buffer }, confirmation: Confirmation): Buffer {
  const { confirmed, timeMs } = confirmation;
  const { uid, nonce } = header;
  return encodeJson({ kind: "confirmation", uid, epoch: 0, sequence: 1, nonce }, { confirmed, timeMs });
}

export function decodeConfirmation(bytes: Buffer, expected: { uid: VolumeUid }): Confirmation {
  const { fields } = decodeJson(bytes, { kind: "confirmation", uid: expected.uid, epoch: 0, sequence: 1 });
  return { confirmed: fields.flag("confirmed"), timeMs: fields.count("timeMs") };
}

/** Only its existence and its nonce are looked at. */
export function encodeRemoval(header: { uid: VolumeUid; nonce: Buffer }, timeMs: number): Buffer {
  const { uid, nonce } = header;
  return encodeJson({ kind: "removal", uid, epoch: 0, sequence: 1, nonce }, { timeMs });
}

export function encodeEpochClaim(header: { uid: VolumeUid; nonce: Buffer }, claim: EpochClaim): Buffer {
  const { epoch, nodeId, journalId, publication, timeMs } = claim;
  const fields = { nodeId, journalId, publication, timeMs };
  return encodeJson({ uid: header.uid, nonce: header.nonce, kind: "epoch", epoch, sequence: 0 }, fields);
}

export function decodeEpochClaim(bytes: Buffer, expected: { uid: VolumeUid; epoch: Epoch }): EpochClaim {
  const { fields } = decodeJson(bytes, { ...expected, kind: "epoch", sequence: 0 });
  const journalId = fields.text("journalId");
  if (!hex32.test(journalId)) throw fields.invalid("journalId");
  return {
    epoch: expected.epoch,
    nodeId: fields.text("nodeId"),
    journalId,
    publication: fields.count("publication"),
    timeMs: fields.count("timeMs"),
  };
}

export function encodePublication(header: { uid: VolumeUid; nonce: Buffer }, publication: PublicationRecord): Buffer {
  const { number, nodeId, readOnly, timeMs } = publication;
  const fields = { nodeId, readOnly, timeMs };
  return encodeJson({ uid: header.uid, nonce: header.nonce, kind: "publication", epoch: 0, sequence: number }, fields);
}

export function decodePublication(bytes: Buffer, expected: { uid: VolumeUid; number: number }): PublicationRecord {
  const { uid, number } = expected;
  const { fields } = decodeJson(bytes, { kind: "publication", uid, epoch: 0, sequence: number });
  return {
    number,
    nodeId: fields.optional("nodeId") === null ? null : fields.text("nodeId"),
    readOnly: fields.flag("readOnly"),
    timeMs: fields.count("timeMs"),
  };
}

export function encodeLocation(nonce: Buffer, location: LocationRecord): Buffer {
  const { url, endpoint, region } = location;
  return encodeJson({ kind: "location", uid: NO_VOLUME_UID, epoch: 0, sequence: 0, nonce }, { url, endpoint, region });
}

export function decodeLocation(bytes: Buffer): LocationRecord {
  const { fields } = decodeJson(bytes, { kind: "location", uid: NO_VOLUME_UID, epoch: 0, sequence: 0 });
  return { url: fields.text("url"), endpoint: fields.text("endpoint"), region: fields.text("region") };
}

/** Fields that are undefined are left out. */
function encodeJson(header: Parameters<typeof encodeEnvelope>[0], fields: object): Buffer {
  return encodeEnvelope(header, Buffer.from(JSON.stringify(fields)));
}

function decodeJson(bytes: Buffer, expected: ExpectedEnvelope): { uid: VolumeUid; fields: JsonFields } {
  const { section, uid } = decodeEnvelope(bytes, expected);
  const context = { kind: expected.kind };
  if (bytes.length !== ENVELOPE_BYTES + section.length || section.length > MAX_SECTION_BYTES) {
    throw corrupt("control record is not of its size", { ...context, length: bytes.length });
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(section));
  } catch {
    throw corrupt("control record is no valid JSON", context);
  }
  if (!isObject(value)) throw corrupt("control record is no JSON object", context);
  return { uid, fields: new JsonFields(value, context) };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Typed access to a JSON object of unknown content; a field of a wrong type is "corrupt". */
class JsonFields {
  readonly #values: Record<string, unknown>;
  readonly #context: ErrorContext;

  constructor(values: Record<string, unknown>, context: ErrorContext) {
    this.#values = values;
    this.#context = context;
  }

  invalid(field: string): Error {
    return corrupt("control record has an invalid field", { ...this.#context, field });
  }

  /** The value as it is; undefined where there is none. */
  optional(field: string): unknown {
    return Object.hasOwn(this.#values, field) ? this.#values[field] : undefined;
  }

  text(field: string): string {
    const value = this.optional(field);
    if (typeof value !== "string") throw this.invalid(field);
    return value;
  }

  /** A whole number from 0. */
  count(field: string): number {
    const value = this.optional(field);
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) throw this.invalid(field);
    return value;
  }

  flag(field: string): boolean {
    const value = this.optional(field);
    if (typeof value !== "boolean") throw this.invalid(field);
    return value;
  }

  oneOf<const T>(field: string, choices: readonly T[]): T {
    const value = this.optional(field);
    const choice = choices.find((candidate) => candidate === value);
    if (choice === undefined) throw this.invalid(field);
    return choice;
  }

  uids(field: string): VolumeUid[] {
    const value = this.optional(field);
    if (!Array.isArray(value) || !value.every((uid) => typeof uid === "string" && hex32.test(uid))) {
      throw this.invalid(field);
    }
    return value as VolumeUid[];
  }

  texts(field: string): Record<string, string> {
    const value = this.optional(field);
    if (!isObject(value)) throw this.invalid(field);
    const entries = Object.entries(value);
    if (!entries.every(([, text]) => typeof text === "string")) throw this.invalid(field);
    return Object.fromEntries(entries) as Record<string, string>;
  }
}
