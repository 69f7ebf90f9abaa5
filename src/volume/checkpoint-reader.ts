/** Finding the checkpoint that a recovery starts from. */
import { OperationError } from "../base/errors.ts";
import { listAll, type ObjectStore, type RequestOptions } from "../store/object-store.ts";
import { type DecodedCheckpoint, decodeCheckpoint } from "./format/checkpoint.ts";
import type { DecodedSegmentHead } from "./format/segment.ts";
import type { Epoch } from "./identity.ts";
import { checkpointKey, checkpointPrefix, parseKey, type VolumeRef } from "./keys.ts";

/**
 * The newest checkpoint that the last started epoch wrote, or the one it was based on; undefined where there is none.
 * Checkpoints of other epochs, which the chain does not name, are not looked at.
 */
export async function newestCheckpoint(
  store: ObjectStore,
  volume: VolumeRef,
  last: { epoch: Epoch; start: DecodedSegmentHead },
  options: RequestOptions,
): Promise<DecodedCheckpoint | undefined> {
  let { baseCheckpoint } = last.start;
  for await (const { key } of listAll(store, checkpointPrefix(volume, last.epoch), options)) {
    const parsed = parseKey(key);
    if (parsed?.kind === "checkpoint") baseCheckpoint = { epoch: parsed.epoch, number: parsed.number };
  }
  if (baseCheckpoint === undefined) return undefined;
  const { epoch, number } = baseCheckpoint;
  const bytes = await store.get(checkpointKey(volume, epoch, number), options);
  if (bytes === undefined) throw broken(volume, `a checkpoint that the log names is missing number=${number}`, epoch);
  return decodeCheckpoint(bytes, { uid: volume.uid, epoch, sequence: number });
}

/** What the log says cannot be: an object was lost or changed. */
export function broken(volume: VolumeRef, message: string, epoch: number): OperationError {
  return new OperationError("corrupt", `${message}: restore the object or use a snapshot`, {
    context: { volumeId: volume.id, epoch },
  });
}
