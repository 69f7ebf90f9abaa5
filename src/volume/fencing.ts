/**
 * Ownership of a volume, by write-once objects alone: no lease, no clock.
 *
 * - An epoch is claimed by creating its record; exactly one claimant can.
 * - Before it writes, a new owner closes every epoch before its own: it puts FENCE into the first gap of the log, so
 *   that the former owner's next segment meets it and is refused. An epoch that never started gets FENCE where its
 *   START would stand.
 * - START (sequence 0) of the new epoch names the end of the log before it: the chain of STARTs is the history.
 * FENCE and START are never deleted and no sequence is ever used twice while the volume lives: a fence that was
 * collected would let a late writer write over it.
 */
import type { Clock } from "../base/clock.ts";
import { OperationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { listAll, type ObjectStore, type RequestOptions } from "../store/object-store.ts";
import { newestCheckpoint } from "./checkpoint-reader.ts";
import { decodeEpochClaim, encodeEpochClaim, type EpochClaim } from "./format/control-records.ts";
import { type DecodedSegmentHead, encodeSegmentHead, SegmentExtents, type SegmentHead } from "./format/segment.ts";
import type { Epoch, SegmentSeq } from "./identity.ts";
import { epochKey, epochPrefix, parseKey, segmentKey, type VolumeRef } from "./keys.ts";
import { LogReader } from "./log-reader.ts";
import { checkpointTable, logTable, startTable } from "./recovery-tables.ts";
import { getDecoded } from "./verified-read.ts";

export interface FencingEnvironment {
  store: ObjectStore;
  clock: Clock;
  random: Random;
  options?: RequestOptions;
}

/** The newest epoch that anybody has claimed, or undefined for a volume that nobody has owned yet. */
export async function newestClaim(environment: FencingEnvironment, volume: VolumeRef): Promise<EpochClaim | undefined> {
  let newest: string | undefined;
  for await (const { key } of listAll(environment.store, epochPrefix(volume), environment.options)) newest = key;
  if (newest === undefined) return undefined;
  const parsed = parseKey(newest);
  if (parsed?.kind !== "epoch")
    throw new OperationError("corrupt", "unknown object among the epochs", { context: { key: newest } });
  const expected = { uid: volume.uid, epoch: parsed.epoch };
  const decode = (bytes: Buffer): EpochClaim => decodeEpochClaim(bytes, expected);
  const claim = await getDecoded(environment.store, newest, decode, environment.options);
  if (claim === undefined) throw new OperationError("busy", "the volume is being deleted: try again later");
  return claim;
}

/** Creates the record of the epoch after `previous`. "busy" where somebody else was first: nothing is claimed then. */
export async function claimEpoch(
  environment: FencingEnvironment,
  volume: VolumeRef,
  previous: EpochClaim | undefined,
  claim: { nodeId: string; journalId: Buffer; publication: number },
): Promise<Epoch> {
  const epoch = ((previous?.epoch ?? 0) + 1) as Epoch;
  const header = { uid: volume.uid, nonce: environment.random.bytes(16) };
  const record: EpochClaim = {
    epoch,
    nodeId: claim.nodeId,
    journalId: claim.journalId.toString("hex"),
    publication: claim.publication,
    timeMs: environment.clock.now(),
  };
  const body = encodeEpochClaim(header, record);
  const outcome = await environment.store.putIfAbsent(epochKey(volume, epoch), [body], environment.options);
  if (outcome === "created") return epoch;
  throw new OperationError("busy", "another node is taking the volume over at this moment: try again", {
    context: { volumeId: volume.id, epoch },
  });
}

/**
 * Closes `newest` and every epoch below it down to the last one that had started: from then on no owner of them can
 * write. Returns that one's START (its log is closed by closeLog), or undefined where none ever started.
 */
export async function closeStarts(
  environment: FencingEnvironment,
  volume: VolumeRef,
  newest: Epoch | 0,
): Promise<{ epoch: Epoch; start: DecodedSegmentHead } | undefined> {
  const reader = new LogReader(environment.store, volume.uid, environment.options);
  for (let epoch = newest as number; epoch >= 1; epoch -= 1) {
    let start = await reader.head(epoch as Epoch, 0 as SegmentSeq);
    let { action } = startTable.decide({ found: foundAtStart(start) });
    if (action === "fence") {
      if ((await putFence(environment, volume, epoch as Epoch, 0 as SegmentSeq)) === "created") continue;
      start = await reader.head(epoch as Epoch, 0 as SegmentSeq);
      if (start === undefined) throw gone(volume);
      ({ action } = startTable.decide({ found: foundAtStart(start) }));
    }
    if (action === "stop") return { epoch: epoch as Epoch, start: start! };
  }
  return undefined;
}

function foundAtStart(head: DecodedSegmentHead | undefined): "START" | "FENCE" | "nothing" {
  if (head === undefined) return "nothing";
  return head.type === "start" ? "START" : "FENCE";
}

/** What stands where the next segment of a log is looked for. START stands nowhere but at the beginning. */
export function foundInLog(head: DecodedSegmentHead | undefined): "data" | "FENCE" | "nothing" {
  if (head === undefined) return "nothing";
  return head.type === "data" ? "data" : "FENCE";
}

/**
 * Reads the log of a started epoch on from `from` to its first gap, puts FENCE there, and calls `visit` for every data
 * segment on the way, in order. Returns the last sequence.
 */
export async function closeLog(
  environment: FencingEnvironment,
  volume: VolumeRef,
  epoch: Epoch,
  from: SegmentSeq,
  visit: (head: DecodedSegmentHead) => void | Promise<void>,
): Promise<SegmentSeq> {
  const reader = new LogReader(environment.store, volume.uid, environment.options);
  let next: SegmentSeq = from;
  for (;;) {
    let isNew = true;
    for await (const { sequence, head } of reader.heads(epoch, next)) {
      next = sequence;
      const { action } = logTable.decide({ epoch: "the last", found: foundInLog(head) });
      if (action === "fence") break;
      isNew = false;
      if (action === "end") return (sequence - 1) as SegmentSeq;
      await visit(head!);
    }
    // The gap: either our fence closes it, or something came in meanwhile and is read in the next turn.
    if ((await putFence(environment, volume, epoch, next)) === "created") return (next - 1) as SegmentSeq;
    if (isNew && (await reader.head(epoch, next)) === undefined) throw gone(volume);
  }
}

/** Puts START of `epoch`. "fenced" where a later owner has closed the epoch before it began. */
export async function startEpoch(
  environment: FencingEnvironment,
  volume: VolumeRef,
  epoch: Epoch,
  start: Pick<SegmentHead, "journalId" | "journalEnd" | "parent" | "baseCheckpoint" | "everWritten">,
): Promise<void> {
  const header = { uid: volume.uid, epoch, sequence: 0, nonce: environment.random.bytes(16) };
  const timeMs = environment.clock.now();
  const head = encodeSegmentHead(header, {
    ...start,
    type: "start",
    timeMs,
    extents: new SegmentExtents(1),
    dataLength: 0,
  });
  const key = segmentKey(volume.uid, epoch, 0 as SegmentSeq);
  if ((await environment.store.putIfAbsent(key, [head], environment.options)) === "created") return;
  throw new OperationError("fenced", "another node took the volume over before this one had started", {
    context: { volumeId: volume.id, epoch },
  });
}

/** Stops whoever owns the volume, for good: for its deletion, once it is marked as deleted. */
export async function fenceForDeletion(
  environment: FencingEnvironment,
  volume: VolumeRef,
  nodeId: string,
): Promise<void> {
  const previous = await newestClaim(environment, volume);
  const claim = { nodeId, journalId: Buffer.alloc(16), publication: 0 };
  const epoch = await claimEpoch(environment, volume, previous, claim);
  const last = await closeStarts(environment, volume, (epoch - 1) as Epoch | 0);
  if (last === undefined) return;
  // What a checkpoint covers has no gap: only the log behind it has to be read to find the first one.
  // A deletion that was cut short may have taken the checkpoint away already; it had fenced the owner before.
  const found = await newestCheckpoint(environment.store, volume, last, environment.options ?? {});
  const { action } = checkpointTable.decide({ found: found.state, purpose: "delete" });
  if (action === "refuse") throw found.problem!;
  const checkpoint = action === "use" ? found.checkpoint : undefined;
  const covered = checkpoint?.covers.epoch === last.epoch ? checkpoint.covers.sequence : 0;
  await closeLog(environment, volume, last.epoch, (covered + 1) as SegmentSeq, () => undefined);
}

async function putFence(
  environment: FencingEnvironment,
  volume: VolumeRef,
  epoch: Epoch,
  sequence: SegmentSeq,
): Promise<"created" | "exists"> {
  const fence = encodeSegmentHead(
    { uid: volume.uid, epoch, sequence, nonce: environment.random.bytes(16) },
    {
      type: "fence",
      timeMs: environment.clock.now(),
      journalId: Buffer.alloc(16),
      journalEnd: 0,
      everWritten: false,
      extents: new SegmentExtents(1),
      dataLength: 0,
    },
  );
  return await environment.store.putIfAbsent(segmentKey(volume.uid, epoch, sequence), [fence], environment.options);
}

function gone(volume: VolumeRef): OperationError {
  return new OperationError("busy", "log objects vanish while they are read: is the volume being deleted?", {
    context: { volumeId: volume.id },
  });
}
