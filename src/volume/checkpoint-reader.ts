/** Finding the checkpoint that a recovery starts from. */
import { isKind, OperationError } from "../base/errors.ts";
import { listAll, type ObjectStore, type RequestOptions } from "../store/object-store.ts";
import { type DecodedCheckpoint, decodeCheckpoint } from "./format/checkpoint.ts";
import type { DecodedSegmentHead } from "./format/segment.ts";
import type { Epoch } from "./identity.ts";
import { checkpointKey, checkpointPrefix, parseKey, type VolumeRef } from "./keys.ts";
import type { CheckpointState } from "./recovery-tables.ts";
import { getDecoded } from "./verified-read.ts";

export interface FoundCheckpoint {
  state: CheckpointState;
  /** Only where the state is "sound". */
  checkpoint: DecodedCheckpoint | undefined;
  /** What is wrong with it: "corrupt". */
  problem: OperationError | undefined;
}

/**
 * The newest checkpoint that the last started epoch wrote, or the one it was based on. Checkpoints of other epochs,
 * which the chain does not name, are not looked at.
 */
export async function newestCheckpoint(
  store: ObjectStore,
  volume: VolumeRef,
  last: { epoch: Epoch; start: DecodedSegmentHead },
  options: RequestOptions,
): Promise<FoundCheckpoint> {
  let { baseCheckpoint } = last.start;
  for await (const { key } of listAll(store, checkpointPrefix(volume, last.epoch), options)) {
    const parsed = parseKey(key);
    if (parsed?.kind === "checkpoint") baseCheckpoint = { epoch: parsed.epoch, number: parsed.number };
  }
  if (baseCheckpoint === undefined) return { state: "none", checkpoint: undefined, problem: undefined };
  const { epoch, number } = baseCheckpoint;
  const decode = (bytes: Buffer): DecodedCheckpoint =>
    decodeCheckpoint(bytes, { uid: volume.uid, epoch, sequence: number });
  try {
    const checkpoint = await getDecoded(store, checkpointKey(volume, epoch, number), decode, options);
    if (checkpoint !== undefined) return { state: "sound", checkpoint, problem: undefined };
  } catch (error) {
    if (!isKind(error, "corrupt")) throw error;
    return { state: "damaged", checkpoint: undefined, problem: error };
  }
  const problem = broken(volume, `a checkpoint that the log names is missing number=${number}`, epoch);
  return { state: "missing", checkpoint: undefined, problem };
}

/** What the log says cannot be: an object was lost or changed. */
export function broken(volume: VolumeRef, message: string, epoch: number): OperationError {
  return new OperationError("corrupt", `${message}: restore the object or use a snapshot`, {
    context: { volumeId: volume.id, epoch },
  });
}
