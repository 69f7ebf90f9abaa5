/**
 * Taking a volume into possession: claim an epoch, close the ones before, rebuild the map from the newest checkpoint
 * and the log behind it, replay the local journal where it is the journal of the last owner, and START.
 *
 * Every decision is a lookup in recovery-tables.ts; S3 alone decides which of the local journal counts.
 * In mode "resume" (a restarted server) nothing is claimed unless the newest claim is this journal's own.
 */
import type { Clock } from "../base/clock.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Random } from "../base/random.ts";
import type { ObjectStore } from "../store/object-store.ts";
import type { BlockMap } from "./block-map.ts";
import { broken, newestCheckpoint } from "./checkpoint-reader.ts";
import {
  claimEpoch,
  closeLog,
  closeStarts,
  type FencingEnvironment,
  foundInLog,
  newestClaim,
  startEpoch,
} from "./fencing.ts";
import type { DecodedCheckpoint } from "./format/checkpoint.ts";
import type { EpochClaim, VolumeMeta } from "./format/control-records.ts";
import type { JournalRecord } from "./format/journal-record.ts";
import type { DecodedSegmentHead } from "./format/segment.ts";
import type { Epoch, SegmentSeq } from "./identity.ts";
import type { Journal } from "./journal.ts";
import { epochKey, segmentKey, type VolumeRef } from "./keys.ts";
import { LogReader } from "./log-reader.ts";
import { applyExtents } from "./map-apply.ts";
import {
  type ChainLink,
  chainTable,
  checkpointTable,
  type Claimant,
  claimTable,
  journalTable,
  logTable,
} from "./recovery-tables.ts";

export interface RecoveryEnvironment {
  store: ObjectStore;
  clock: Clock;
  random: Random;
  log: Log;
  journal: Journal;
  map: BlockMap;
  nodeId: string;
  publication: number;
  /** See EngineOpenOptions. */
  clientWaits: boolean;
  signal: AbortSignal;
  /**
   * Throws where the volume was deleted meanwhile, or the caller has lost its right: asked once the epoch is claimed (a
   * deleter that comes later fences it) and before anybody is fenced by it.
   */
  confirm: () => Promise<void>;
  /**
   * Throws where the volume was deleted meanwhile, after `whenDeleted` where that is certain. Asked once more when START
   * stands: a deletion removes fences with the log, so that a claimant which stood still all that time meets none. One
   * that marks the volume later finds START.
   */
  exists: (whenDeleted: () => Promise<void>) => Promise<void>;
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
  const { journal, store, clock, random, signal } = environment;
  const fencing: FencingEnvironment = { store, clock, random, options: { signal } };
  const volume: VolumeRef = { id: meta.id, uid: meta.uid };
  const previous = await newestClaim(fencing, volume);
  const claimant = await claimantOf(environment, volume, previous, mode);
  if (claimTable.decide({ mode, claimant }).action === "refuse") {
    throw new OperationError("fenced", "another node has taken the volume over while this one was down", {
      context: { volumeId: meta.id, owner: previous?.nodeId ?? "nobody" },
    });
  }
  const { nodeId, publication } = environment;
  const epoch = await claimEpoch(fencing, volume, previous, { nodeId, journalId: journal.journalId, publication });
  await environment.confirm();
  const history = await readHistory(environment, fencing, volume, (epoch - 1) as Epoch | 0);
  let journaled = history.everWritten;
  const journalEnd = await takeJournal(environment, history, (record, position) => {
    journaled = true;
    visit(record, position);
  });
  await startEpoch(fencing, volume, epoch, {
    journalId: journal.journalId,
    journalEnd,
    parent: history.parent,
    baseCheckpoint: history.baseCheckpoint,
    everWritten: history.everWritten,
  });
  await environment.exists(() => withdraw(environment, volume, epoch));
  const everWritten = { stored: history.everWritten, journaled };
  return { epoch, everWritten, journalEnd, replayedSegments: history.replayedSegments };
}

/** Removes what an opening has left under a volume that is gone, where the store takes it; it harms nobody. */
async function withdraw(environment: RecoveryEnvironment, volume: VolumeRef, epoch: Epoch): Promise<void> {
  const { store, signal, log } = environment;
  const start = segmentKey(volume.uid, epoch, 0 as SegmentSeq);
  await store.delete([start, epochKey(volume, epoch)], { signal }).catch((error: unknown) => {
    log.info("the beginning of an opening stays behind", { operation: "open", epoch, error: describe(error) });
  });
}

/** Whose the newest claim is: by its record, or by the START it led to, which is asked for only where it matters. */
async function claimantOf(
  environment: RecoveryEnvironment,
  volume: VolumeRef,
  claim: EpochClaim | undefined,
  mode: "take" | "resume",
): Promise<Claimant> {
  const { journal, store, signal } = environment;
  if (claim === undefined) return "nobody";
  if (!journal.hasHistory) return "another journal";
  if (claim.journalId === journal.journalId.toString("hex")) return "this journal";
  if (mode === "take") return "another journal";
  const start = await new LogReader(store, volume.uid, { signal }).head(claim.epoch, 0 as SegmentSeq);
  const isOwn = start?.type === "start" && start.journalId.equals(journal.journalId);
  return isOwn ? "this journal by its START" : "another journal";
}

/** Replays the local journal or begins a new one; returns the sequence of its last record that S3 holds. */
async function takeJournal(
  environment: RecoveryEnvironment,
  history: History,
  visit: (record: JournalRecord, framePosition: number) => void,
): Promise<number> {
  const { journal, log, clientWaits } = environment;
  const isOwn = history.journalId?.equals(journal.journalId);
  const owner = isOwn === undefined ? "nobody" : isOwn ? "this journal" : "another journal";
  const { action, name } = journalTable.decide({ journal: journal.state, owner });
  const fields = { operation: "open", state: name };
  if (action === "replay") {
    await journal.recover({ durableSequence: history.journalEnd, clientWaits }, visit);
    return history.journalEnd;
  }
  if (action === "set aside") {
    const files = await journal.setAside();
    log.warn("the local journal is set aside and will not be replayed", { ...fields, files });
  } else log.info("a new local journal begins", fields);
  await journal.begin(1);
  return 0;
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
  const checkpoint = await mustCheckpoint(environment, volume, last);
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

async function mustCheckpoint(
  environment: RecoveryEnvironment,
  volume: VolumeRef,
  last: { epoch: Epoch; start: DecodedSegmentHead },
): Promise<DecodedCheckpoint | undefined> {
  const { store, signal } = environment;
  const { state, checkpoint, problem } = await newestCheckpoint(store, volume, last, { signal });
  const { action } = checkpointTable.decide({ found: state, purpose: "open" });
  if (action === "refuse") throw problem!;
  return action === "use" ? checkpoint : undefined;
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
  for (;;) {
    const [first] = starts;
    const { link, parent } = await lookBack(reader, first, checkpoint);
    const row = chainTable.decide({ checkpoint: checkpoint === undefined ? "no" : "yes", start: link });
    if (row.action === "done") return starts;
    if (row.action === "refuse") throw broken(volume, row.name, first.parent?.epoch ?? checkpoint!.covers.epoch);
    starts.unshift(parent!);
  }
}

async function lookBack(
  reader: LogReader,
  start: DecodedSegmentHead,
  checkpoint: DecodedCheckpoint | undefined,
): Promise<{ link: ChainLink; parent?: DecodedSegmentHead }> {
  if (start.epoch === checkpoint?.covers.epoch) return { link: "it is covered" };
  if (start.parent === undefined) return { link: "no parent" };
  if (start.parent.epoch >= start.epoch) return { link: "parent not earlier" };
  const parent = await reader.head(start.parent.epoch, 0 as SegmentSeq);
  return parent?.type === "start" ? { link: "parent", parent } : { link: "parent without START" };
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
    const { action, name } = logTable.decide({ epoch: "an earlier one", found: foundInLog(head) });
    if (action === "refuse") throw broken(volume, `${name} sequence=${sequence}`, epoch);
    await apply(head!);
  }
}
