/**
 * Every key of the store, built and parsed here and nowhere else. Numbers are 16 hex digits, so that plain byte order
 * is numeric order. All but the records of who has a name lies under a volume's uid: a late request for a deleted
 * volume never meets a new one of the same id (docs/decisions/0001-volume-uid.md, 0002-names-that-come-back.md).
 *
 *   v1/volumes/<id>/meta/<n>                      who has the name: names.ts
 *   v1/volumes/<id>/<uid>/meta/<n>                v1/volumes/<id>/<uid>/removal/<n>
 *   v1/volumes/<id>/<uid>/epoch/<e>               v1/volumes/<id>/<uid>/publication/<n>
 *   v1/volumes/<id>/<uid>/checkpoint/<e>/<n>      v1/volumes/<id>/<uid>/map/<e>/<n>
 *   v1/log/<hh>/<uid>/<e>/<s>                     hh = low byte of s: 256 key prefixes
 *   v1/locations/<16 hex digits>                  v1/nodes/<32 hex digits>
 *
 * Reserved below a uid: snapshot, pin, gc. parseKey(build(x)) = x, and no other text parses.
 */
import { assert } from "../base/assert.ts";
import { type Epoch, isVolumeId, type SegmentSeq, type VolumeId, type VolumeUid } from "./identity.ts";

/** What names a volume's objects. */
export interface VolumeRef {
  id: VolumeId;
  uid: VolumeUid;
}

export type ParsedKey =
  | { kind: "name"; id: VolumeId; number: number }
  | { kind: "meta" | "removal"; id: VolumeId; uid: VolumeUid; number: number }
  | { kind: "epoch"; id: VolumeId; uid: VolumeUid; epoch: Epoch }
  | { kind: "checkpoint" | "map"; id: VolumeId; uid: VolumeUid; epoch: Epoch; number: number }
  | { kind: "publication"; id: VolumeId; uid: VolumeUid; number: number }
  | { kind: "segment"; uid: VolumeUid; epoch: Epoch; sequence: SegmentSeq }
  | { kind: "location"; hash: string }
  | { kind: "node"; hash: string };

export const VOLUMES_PREFIX = "v1/volumes/";
export const LOCATIONS_PREFIX = "v1/locations/";
/** How many prefixes the log is spread over. */
export const LOG_PREFIX_COUNT = 256;

const NODES_PREFIX = "v1/nodes/";
const numberPattern = /^[0-9a-f]{16}$/;
const uidPattern = /^[0-9a-f]{32}$/;

export function isVolumeUid(text: string): text is VolumeUid {
  return uidPattern.test(text);
}

/** Everything of an id: metadata and all uids. */
export function volumePrefix(id: VolumeId): string {
  return `${VOLUMES_PREFIX}${id}/`;
}

/** Everything of one incarnation but its metadata and its log. */
export function uidPrefix(volume: VolumeRef): string {
  return `${volumePrefix(volume.id)}${volume.uid}/`;
}

export function namePrefix(id: VolumeId): string {
  return `${volumePrefix(id)}meta/`;
}

/** Record `number` of who has the name. */
export function nameKey(id: VolumeId, number: number): string {
  return namePrefix(id) + digits(number);
}

export function metaPrefix(volume: VolumeRef): string {
  return `${uidPrefix(volume)}meta/`;
}

/** 1: whether the volume has its name; from 2 on: changes of its metadata. */
export function metaKey(volume: VolumeRef, number: number): string {
  return metaPrefix(volume) + digits(number);
}

export function removalKey(volume: VolumeRef): string {
  return `${uidPrefix(volume)}removal/${digits(1)}`;
}

export function epochPrefix(volume: VolumeRef): string {
  return `${uidPrefix(volume)}epoch/`;
}

export function epochKey(volume: VolumeRef, epoch: Epoch): string {
  return epochPrefix(volume) + digits(epoch);
}

/** All checkpoints, or those one epoch wrote. */
export function checkpointPrefix(volume: VolumeRef, epoch?: Epoch): string {
  return `${uidPrefix(volume)}checkpoint/${epoch === undefined ? "" : `${digits(epoch)}/`}`;
}

export function checkpointKey(volume: VolumeRef, epoch: Epoch, number: number): string {
  return checkpointPrefix(volume, epoch) + digits(number);
}

export function mapKey(volume: VolumeRef, epoch: Epoch, number: number): string {
  return `${uidPrefix(volume)}map/${digits(epoch)}/${digits(number)}`;
}

export function publicationPrefix(volume: VolumeRef): string {
  return `${uidPrefix(volume)}publication/`;
}

export function publicationKey(volume: VolumeRef, number: number): string {
  return publicationPrefix(volume) + digits(number);
}

/** One of the 256 places that hold a volume's log. */
export function logPrefix(uid: VolumeUid, spread: number): string {
  assert(Number.isInteger(spread) && spread >= 0 && spread < LOG_PREFIX_COUNT, `no log prefix: ${spread}`);
  return `v1/log/${spread.toString(16).padStart(2, "0")}/${uid}/`;
}

export function segmentKey(uid: VolumeUid, epoch: Epoch, sequence: SegmentSeq): string {
  return `${logPrefix(uid, sequence % LOG_PREFIX_COUNT)}${digits(epoch)}/${digits(sequence)}`;
}

export function locationKey(hash: string): string {
  assert(numberPattern.test(hash), "a location hash is 16 hex digits");
  return LOCATIONS_PREFIX + hash;
}

/** `hash` stands for a node's id: csi/node-registry.ts. */
export function nodeKey(hash: string): string {
  assert(uidPattern.test(hash), "the hash of a node id is 32 hex digits");
  return NODES_PREFIX + hash;
}

/** Undefined for any text that no function above builds, and for reserved keys. */
export function parseKey(key: string): ParsedKey | undefined {
  const parts = key.split("/");
  if (parts[0] !== "v1") return undefined;
  if (parts[1] === "log") return parseLogKey(parts);
  if (parts[1] === "locations") {
    return parts.length === 3 && numberPattern.test(parts[2]) ? { kind: "location", hash: parts[2] } : undefined;
  }
  if (parts[1] === "nodes") {
    return parts.length === 3 && uidPattern.test(parts[2]) ? { kind: "node", hash: parts[2] } : undefined;
  }
  if (parts[1] !== "volumes" || parts.length < 5 || !isVolumeId(parts[2])) return undefined;
  return parseVolumeKey(parts[2], parts.slice(3));
}

function parseLogKey(parts: string[]): ParsedKey | undefined {
  const [, , spread, uid, epochText, sequenceText] = parts;
  if (parts.length !== 6 || !isVolumeUid(uid)) return undefined;
  const epoch = parseNumber(epochText);
  const sequence = parseNumber(sequenceText);
  if (epoch === undefined || sequence === undefined || spread !== sequenceText.slice(-2)) return undefined;
  return { kind: "segment", uid, epoch: epoch as Epoch, sequence: sequence as SegmentSeq };
}

function parseVolumeKey(id: VolumeId, rest: string[]): ParsedKey | undefined {
  const numbers = rest.slice(rest[0] === "meta" ? 1 : 2).map(parseNumber);
  if (numbers.includes(undefined)) return undefined;
  const [first, second] = numbers as number[];
  if (rest[0] === "meta") return rest.length === 2 ? { kind: "name", id, number: first } : undefined;
  const [uid, kind] = rest;
  if (!isVolumeUid(uid)) return undefined;
  if (rest.length === 3 && kind === "epoch") return { kind, id, uid, epoch: first as Epoch };
  if (rest.length === 3 && (kind === "publication" || kind === "meta" || (kind === "removal" && first === 1))) {
    return { kind, id, uid, number: first };
  }
  if (rest.length === 4 && (kind === "checkpoint" || kind === "map")) {
    return { kind, id, uid, epoch: first as Epoch, number: second };
  }
  return undefined;
}

function digits(value: number): string {
  if (!(Number.isSafeInteger(value) && value >= 0)) assert(false, `not a key number: ${value}`);
  return value.toString(16).padStart(16, "0");
}

function parseNumber(text: string): number | undefined {
  if (!numberPattern.test(text)) return undefined;
  const value = Number.parseInt(text, 16);
  return Number.isSafeInteger(value) ? value : undefined;
}
