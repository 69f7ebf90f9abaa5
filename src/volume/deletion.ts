/**
 * Removes everything a volume's incarnation has in the store but its metadata. The caller has marked the metadata
 * deleted and stopped every owner; both can be done again, so a deletion that died anywhere is simply run again.
 *
 * What a former owner has on its way to the store may still arrive afterwards. It lies under the uid, which no other
 * volume has: it takes space, and is never read.
 */
import type { Clock } from "../base/clock.ts";
import type { Log } from "../base/log.ts";
import type { ObjectStore } from "../store/object-store.ts";
import { mapConcurrently } from "./concurrency.ts";
import { LOG_PREFIX_COUNT, logPrefix, uidPrefix, type VolumeRef } from "./keys.ts";

const CONCURRENCY = 16;
const PROGRESS_INTERVAL_MS = 10_000;

export interface DeletionOptions {
  store: ObjectStore;
  clock: Pick<Clock, "monotonicMs">;
  log: Log;
}

/** Deletes the log, then what lies under id and uid; returns how many objects that were. */
export async function deleteVolumeObjects(options: DeletionOptions, volume: VolumeRef): Promise<number> {
  const progress = new Progress(options, volume);
  const logPrefixes = Array.from({ length: LOG_PREFIX_COUNT }, (_, spread) => logPrefix(volume.uid, spread));
  await mapConcurrently(logPrefixes, CONCURRENCY, (prefix) => deleteUnder(options.store, prefix, progress));
  await deleteUnder(options.store, uidPrefix(volume), progress);
  return progress.objects;
}

/** Page by page: what was listed is gone before the next page is asked for. */
async function deleteUnder(store: ObjectStore, prefix: string, progress: Progress): Promise<void> {
  let after: string | undefined;
  do {
    const page = await store.list(prefix, after === undefined ? {} : { after });
    if (page.objects.length > 0) await store.delete(page.objects.map((object) => object.key));
    progress.add(page.objects.length);
    after = page.next;
  } while (after !== undefined);
}

class Progress {
  objects = 0;
  readonly #options: DeletionOptions;
  readonly #volume: VolumeRef;
  #reportedMs: number;

  constructor(options: DeletionOptions, volume: VolumeRef) {
    this.#options = options;
    this.#volume = volume;
    this.#reportedMs = options.clock.monotonicMs();
  }

  add(count: number): void {
    this.objects += count;
    const nowMs = this.#options.clock.monotonicMs();
    if (nowMs - this.#reportedMs < PROGRESS_INTERVAL_MS) return;
    this.#reportedMs = nowMs;
    this.#options.log.info("volume is being deleted", { volumeId: this.#volume.id, objects: this.objects });
  }
}
