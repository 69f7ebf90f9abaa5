/**
 * Removes everything a volume's incarnation has in the store, its metadata last, once it does not have its name any more.
 * The caller has marked the metadata deleted and stopped every owner; both can be done again, so a deletion that died
 * anywhere is simply run again.
 *
 * What a former owner has on its way to the store may still arrive afterwards. It lies under the uid, which no other
 * volume has: it takes space, and is never read.
 */
import type { Clock } from "../base/clock.ts";
import type { Log } from "../base/log.ts";
import type { ObjectStore } from "../store/object-store.ts";
import { mapConcurrently } from "./concurrency.ts";
import { LOG_PREFIX_COUNT, logPrefix, parseKey, uidPrefix, type VolumeRef } from "./keys.ts";

const CONCURRENCY = 16;
const PROGRESS_INTERVAL_MS = 10_000;

export interface DeletionOptions {
  store: ObjectStore;
  clock: Pick<Clock, "monotonicMs">;
  log: Log;
}

/** Deletes the log, then what lies under id and uid but the metadata; returns how many objects that were. */
export async function deleteVolumeObjects(options: DeletionOptions, volume: VolumeRef): Promise<number> {
  const progress = new Progress(options, volume);
  const logPrefixes = Array.from({ length: LOG_PREFIX_COUNT }, (_, spread) => logPrefix(volume.uid, spread));
  await mapConcurrently(logPrefixes, CONCURRENCY, (prefix) => deleteUnder(options.store, prefix, progress));
  await deleteUnder(options.store, uidPrefix(volume), progress, (key) => !isMetadata(key));
  return progress.objects;
}

/**
 * Deletes all that lies under id and uid of volumes that do not have the name any more and never will. The mark of the
 * deletion goes last: whoever still reads the volume's records by what it knew of the name must not miss it (names.ts).
 */
export async function deleteRemains(options: DeletionOptions, volumes: readonly VolumeRef[]): Promise<void> {
  for (const volume of volumes) {
    const progress = new Progress(options, volume);
    await deleteUnder(options.store, uidPrefix(volume), progress, (key) => !isLaterMetadata(key));
    await deleteUnder(options.store, uidPrefix(volume), progress);
  }
}

/** Without these, a deletion that was cut short could not be gone on with. */
function isMetadata(key: string): boolean {
  const kind = parseKey(key)?.kind;
  return kind === "meta" || kind === "removal";
}

function isLaterMetadata(key: string): boolean {
  const parsed = parseKey(key);
  return parsed?.kind === "meta" && parsed.number > 1;
}

/** Page by page: what was listed is gone before the next page is asked for. */
async function deleteUnder(
  store: ObjectStore,
  prefix: string,
  progress: Progress,
  isWanted: (key: string) => boolean = () => true,
): Promise<void> {
  let after: string | undefined;
  do {
    const page = await store.list(prefix, after === undefined ? {} : { after });
    const keys = page.objects.map((object) => object.key).filter(isWanted);
    if (keys.length > 0) await store.delete(keys);
    progress.add(keys.length);
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
