/**
 * Taking a volume into possession: claim an epoch, close the ones before, rebuild the map from the newest checkpoint
 * and the log behind it, replay the local journal where it is the journal of the last owner, and START.
 *
 * Which of the local journal counts is decided by S3 alone:
 *
 *   last started epoch        | local journal         | records above what S3 holds
 *   --------------------------|-----------------------|---------------------------------------------
 *   none                      | none                  | there are none
 *   none                      | of this volume        | replayed (only a START would have made it an owner's)
 *   by this journal           | of this volume        | replayed: nobody wrote in between
 *   by another journal        | of this volume        | set aside, never replayed; a new journal begins
 *   any                       | none, or another's    | none to replay; a new journal begins
 *
 * In mode "resume" (a restarted server) nothing is claimed unless the newest claim is this journal's own.
 */
import type { Clock } from "../base/clock.ts";
import { OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import type { ObjectStore } from "../store/object-store.ts";
import type { BlockMap } from "./block-map.ts";
import { broken, newestCheckpoint } from "./checkpoint-reader.ts";
import { claimEpoch, closeLog, closeStarts, type FencingEnvironment, newestClaim, startEpoch } from "./fencing.ts";
import type { DecodedCheckpoint } from "./format/checkpoint.ts";
import type { EpochClaim, VolumeMeta } from "./format/control-records.ts";
import type { JournalRecord } from "./format/journal-record.ts";
import type { DecodedSegmentHead } from "./format/segment.ts";
import type { Epoch, SegmentSeq } from "./identity.ts";
import type { Journal } from "./journal.ts";
import type { VolumeRef } from "./keys.ts";
import { LogReader } from "./log-reader.ts";
import { applyExtents } from "./map-apply.ts";

export interface RecoveryEnvironment {
  store: ObjectStore;
  clock: Clock;
  random: Random;
  log: Log;
  journal: Journal;
  map: BlockMap;
  nodeId: string;
  publication: number;
  signal: AbortSignal;
  /**
   * Throws where the volume was deleted meanwhile, or the caller has lost its right: asked once the epoch is claimed (a
   * deleter that comes later fences it) and before anybody is fenced by it.
   */
  confirm: () => Promise<void>;
}

export interface Recovered {
  epoch: Epoch;
  /** As S3 knows it, and with what only the local journal holds. */
  everWritten: { stored: boolean; journaled: boolean };
  /** Sequence of the last journal record that S3 holds. */
  journalEnd: number;
  /** Log objects applied on top of the checkpoint: how much a crash now would have to replay. */
  replayedSegments: number;
}

/** What the log says at the moment the epochs before ours were closed. */
interface History {
  parent: { epoch: Epoch; sequence: SegmentSeq } | undefined;
  baseCheckpoint: { epoch: Epoch; number: number } | undefined;
  journalId: Buffer | undefined;
  journalEnd: number;
  everWritten: boolean;
  replayedSegments: number;
}

/** `visit` gets every journal record that S3 does not hold yet, with the position of its first frame. */
export async function recover(
  environment: RecoveryEnvironment,
  meta: VolumeMeta,
  mode: "take" | "resume",
  visit: (record: JournalRecord, framePosition: number) => void,
): Promise<Recovered> {
  const { journal, log } = environment;
  const { store, clock, random, signal } = environment;
  const fencing: FencingEnvironment = { store, clock, random, options: { signal } };
  const volume: VolumeRef = { id: meta.id, uid: meta.uid };
  const previous = await newestClaim(fencing, volume);
  if (mode === "resume" && !(await isOwnClaim(environment, volume, previous))) {
    throw new OperationError("fenced", "another node has taken the volume over while this one was down", {
      context: { volumeId: meta.id, owner: previous?.nodeId ?? "nobody" },
    });
  }
  const { nodeId, publication } = environment;
  const epoch = await claimEpoch(fencing, volume, previous, { nodeId, journalId: journal.journalId, publication });
  await environment.confirm();
  const history = await readHistory(environment, fencing, volume, (epoch - 1) as Epoch | 0);
  const own = history.journalId === undefined || history.journalId.equals(journal.journalId);
  let journalEnd = own ? history.journalEnd : 0;
  let journaled = history.everWritten;
  if (journal.hasHistory && own) {
    await journal.recover(journalEnd, (record, position) => {
      journaled = true;
      visit(record, position);
    });
  } else {
    if (journal.hasHistory) {
      const files = await journal.setAside();
      log.warn("another node owned the volume meanwhile: the local journal is set aside and will not be replayed", {
        operation: "open",
        files,
      });
    }
    journalEnd = 0;
    await journal.begin(1);
  }
  await startEpoch(fencing, volume, epoch, {
    journalId: journal.journalId,
    journalEnd,
    parent: history.parent,
    baseCheckpoint: history.baseCheckpoint,
    everWritten: history.everWritten,
  });
  const everWritten = { stored: history.everWritten, journaled };
  return { epoch, everWritten, journalEnd, replayedSegments: history.replayedSegments };
}

/** Whether the newest claim was made by the owner of the local journal: by its record, or by the START it led to. */
async function isOwnClaim(
  environment: RecoveryEnvironment,
  volume: VolumeRef,
  claim: EpochClaim | undefined,
): Promise<boolean> {
  const { journal, store, signal } = environment;
  if (!journal.hasHistory || claim === undefined) return false;
  if (claim.journalId === journal.journalId.toString("hex")) return true;
  const start = await new LogReader(store, volume.uid, { signal }).head(claim.epoch, 0 as SegmentSeq);
  return start?.type === "start" && start.journalId.equals(journal.journalId);
}

/** Closes all epochs up to `newest` and applies what they hold to the map. */
async function readHistory(
  environment: RecoveryEnvironment,
  fencing: FencingEnvironment,
  volume: VolumeRef,
  newest: Epoch | 0,
): Promise<History> {
  const { map, clock, log } = environment;
  const history: History = {
    parent: undefined,
    baseCheckpoint: undefined,
    journalId: undefined,
    journalEnd: 0,
    everWritten: false,
    replayedSegments: 0,
  };
  const last = await closeStarts(fencing, volume, newest);
  if (last === undefined) return history;
  const checkpoint = await newestCheckpoint(environment.store, volume, last, { signal: environment.signal });
  if (checkpoint !== undefined) {
    map.adopt(checkpoint);
    history.baseCheckpoint = { epoch: checkpoint.epoch, number: checkpoint.number };
    history.everWritten = checkpoint.everWritten;
  }
  history.everWritten ||= last.start.everWritten;
  const apply = async (head: DecodedSegmentHead): Promise<void> => {
    history.everWritten = true;
    history.replayedSegments += 1;
    await applyExtents(map, clock, head, head.extents);
  };
  const starts = await chainBack(environment, volume, last.start, checkpoint);
  for (const [index, start] of starts.slice(0, -1).entries()) {
    const end = starts[index + 1].parent!.sequence;
    const from = start.epoch === checkpoint?.covers.epoch ? checkpoint.covers.sequence + 1 : 1;
    await readSpan(environment, volume, start.epoch, { from, to: end }, apply);
  }
  const covered = checkpoint?.covers.epoch === last.epoch ? checkpoint.covers.sequence : 0;
  history.journalId = last.start.journalId;
  history.journalEnd = last.start.journalEnd;
  if (covered > 0) history.journalEnd = checkpoint!.journalEnd;
  const lastSequence = await closeLog(fencing, volume, last.epoch, (covered + 1) as SegmentSeq, async (head) => {
    history.journalEnd = head.journalEnd;
    await apply(head);
  });
  history.parent = { epoch: last.epoch, sequence: lastSequence };
  log.info("read the log", { operation: "open", replayedSegments: history.replayedSegments, lastEpoch: last.epoch });
  return history;
}

/** STARTs from the epoch that the checkpoint covers (or from the first one) to the last started one, in order. */
async function chainBack(
  environment: RecoveryEnvironment,
  volume: VolumeRef,
  last: DecodedSegmentHead,
  checkpoint: DecodedCheckpoint | undefined,
): Promise<DecodedSegmentHead[]> {
  const reader = new LogReader(environment.store, volume.uid, { signal: environment.signal });
  const starts = [last];
  while (starts[0].epoch !== checkpoint?.covers.epoch && starts[0].parent !== undefined) {
    const { epoch } = starts[0].parent;
    if (epoch >= starts[0].epoch) throw broken(volume, "an epoch names a later one as its parent", epoch);
    const start = await reader.head(epoch, 0 as SegmentSeq);
    if (start?.type !== "start") throw broken(volume, "START of an epoch in the chain is missing", epoch);
    starts.unshift(start);
  }
  if (checkpoint !== undefined && starts[0].epoch !== checkpoint.covers.epoch) {
    throw broken(volume, "the checkpoint covers an epoch that is not in the chain", checkpoint.covers.epoch);
  }
  return starts;
}

async function readSpan(
  environment: RecoveryEnvironment,
  volume: VolumeRef,
  epoch: Epoch,
  span: { from: number; to: number },
  apply: (head: DecodedSegmentHead) => Promise<void>,
): Promise<void> {
  if (span.from > span.to) return;
  const reader = new LogReader(environment.store, volume.uid, { signal: environment.signal });
  for await (const { sequence, head } of reader.heads(epoch, span.from as SegmentSeq, span.to as SegmentSeq)) {
    if (head?.type !== "data") throw broken(volume, `a segment of the log is missing sequence=${sequence}`, epoch);
    await apply(head);
  }
}
