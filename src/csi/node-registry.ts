/**
 * Which nodes there are: one record a node in the driver's own store, written by the node's own process when it starts
 * and never changed. The controller refuses to publish to a node without one, so that a misspelt node id is an error
 * at once and not a volume that nobody can stage. It works with and without Kubernetes, and needs no rights there.
 * A record is not a sign of life, and is no right to anything: publications are (volume/publication.ts). A node that
 * is gone for good leaves a record of a hundred bytes behind, which the operator may delete.
 *
 *   v1/nodes/<32 hex digits of SHA-256 of the node id>: envelope of kind "node", then {"nodeId": …} in JSON
 */
import { createHash } from "node:crypto";
import type { Random } from "../base/random.ts";
import type { ObjectStore } from "../store/object-store.ts";
import { encodeEnvelope, NONCE_BYTES } from "../volume/format/envelope.ts";
import { NO_VOLUME_UID } from "../volume/format/fields.ts";
import { nodeKey } from "../volume/keys.ts";

/** Makes the node known; again is no error. */
export async function registerNode(options: { store: ObjectStore; random: Random }, nodeId: string): Promise<void> {
  const nonce = options.random.bytes(NONCE_BYTES);
  const header = { kind: "node", uid: NO_VOLUME_UID, epoch: 0, sequence: 0, nonce } as const;
  const body = encodeEnvelope(header, Buffer.from(JSON.stringify({ nodeId })));
  await options.store.putIfAbsent(nodeKey(hashNodeId(nodeId)), [body]);
}

/** True where the node has registered itself. */
export async function isKnownNode(store: ObjectStore, nodeId: string): Promise<boolean> {
  return (await store.getRange(nodeKey(hashNodeId(nodeId)), { offset: 0, length: 1 })) !== undefined;
}

function hashNodeId(nodeId: string): string {
  return createHash("sha256").update(nodeId, "utf8").digest("hex").slice(0, 32);
}
