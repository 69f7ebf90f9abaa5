/**
 * How a thread of the server opens a volume: the store of its location, the node's right to own it, its journal's
 * directory, the engine, and around the device what measures it and what serves any range of bytes. And what stands in
 * the place of a volume that may not be served: measured as well, so that whoever watches the metrics learns of it.
 */
import type { Clock } from "../base/clock.ts";
import type { Disk } from "../base/disk.ts";
import { OperationError } from "../base/errors.ts";
import { ByteGranularDevice } from "../block/byte-granular.ts";
import type { BlockDevice, MaybePromise } from "../block/device.ts";
import { MeasuredDevice } from "../block/measured-device.ts";
import { brokenVolume } from "../attachment/broken-device.ts";
import type { HostedVolume } from "../attachment/volume-worker.ts";
import type { BrokenRequest, OpenRequest } from "../attachment/volume-host.ts";
import type { Metrics, VolumeGauges } from "../observability/metrics.ts";
import type { Engine } from "../volume/engine.ts";
import { BLOCK_BYTES } from "../volume/identity.ts";
import type { Publication } from "../volume/publication.ts";
import { publicationTable } from "../volume/recovery-tables.ts";
import type { Volume } from "../volume/volume.ts";
import type { Stores } from "./stores.ts";

export interface HostedVolumesParts {
  engine: Engine;
  stores: Pick<Stores, "of" | "catalog">;
  /** Holds one directory per volume. */
  journals: Disk;
  metrics: Pick<Metrics, "addVolume" | "removeVolume">;
  clock: Clock;
  nodeId: string;
}

/** Opens the volume and everything around it. Errors as Engine.open; "in-use" where another node is published to. */
export async function openHostedVolume(parts: HostedVolumesParts, request: OpenRequest): Promise<HostedVolume> {
  const { engine, stores, journals, metrics, clock } = parts;
  const { volumeId, mode, clientWaits, readOnly, durability, publication } = request;
  const store = stores.of(request.location, request.secrets);
  const confirm = (): Promise<void> => mustBePublishedHere(parts, request);
  await confirm();
  const volume = await engine.open(volumeId, {
    store,
    journalDisk: await journals.directory(volumeId),
    mode,
    readOnly,
    publication,
    clientWaits,
    confirm,
    ...(durability === "" ? {} : { durability }),
  });
  const observer = metrics.addVolume(volumeId, () => gaugesOf(volume));
  const measured = new MeasuredDevice(wholeBlocks(volume), clock, observer);
  const byteDevice = new ByteGranularDevice(measured);
  const release = async (): Promise<void> => {
    metrics.removeVolume(volumeId);
    await removeIfEmpty(journals, volumeId);
  };
  return {
    blockSizeBytes: volume.blockSizeBytes,
    device: volume.blockSizeBytes === BLOCK_BYTES ? measured : byteDevice,
    byteDevice,
    status: () => volume.status(),
    drain: () => volume.drain(),
    leave: () => volume.leave(),
    close: async () => {
      await volume.close();
      await release();
    },
    onFailure: (listener) => volume.onFailure((error) => listener(error.message)),
  };
}

/** What answers errors to a device whose volume may not be served. */
export function openBrokenVolume(
  { metrics, clock }: Pick<HostedVolumesParts, "metrics" | "clock">,
  request: BrokenRequest,
): HostedVolume {
  const volume = brokenVolume(request);
  const observer = metrics.addVolume(request.volumeId, () => gaugesOf(volume));
  const device = new MeasuredDevice(volume.device, clock, observer);
  return { ...volume, device, byteDevice: device, close: async () => metrics.removeVolume(request.volumeId) };
}

/**
 * The control plane's word on who may own the volume. It is no protection (epochs are), but keeps a late call on a
 * node that has lost the volume from taking it away from its new owner.
 */
async function mustBePublishedHere(parts: HostedVolumesParts, request: OpenRequest): Promise<void> {
  const { volumeId, publication, mode } = request;
  const asked = publication === 0 ? "no" : "yes";
  let newest: Publication | undefined;
  // The resuming server and the one without a publication do not ask: the answer would change nothing.
  if (mode === "take" && asked === "yes") {
    const catalog = parts.stores.catalog(parts.stores.of(request.location, request.secrets), parts.nodeId);
    newest = await catalog.getPublication(volumeId);
  }
  const { action } = publicationTable.decide({ mode, asked, inForce: inForceFor(newest, parts.nodeId, publication) });
  if (action === "go on") return;
  throw new OperationError("in-use", "the volume is not published to this node any more: publish it again", {
    context: { volumeId, publication, publishedTo: newest?.nodeId ?? "nobody" },
  });
}

function inForceFor(newest: Publication | undefined, nodeId: string, publication: number) {
  if (newest === undefined) return "none";
  if (newest.nodeId !== nodeId) return "one for another node";
  return newest.number === publication ? "the one asked for" : "a later one for this node";
}

function gaugesOf(volume: Pick<HostedVolume, "status">): VolumeGauges {
  const status = volume.status();
  return {
    sizeBytes: status.sizeBytes,
    dirtyBytes: status.dirtyBytes,
    behindSeconds: status.behindMs / 1000,
    journalUsedBytes: status.journalUsedBytes,
    journalLimitBytes: status.journalLimitBytes,
    journalFullSeconds: status.journalFullSeconds,
    failed: status.state === "failed",
  };
}

/** What is left there was left on purpose: the journal of a volume that failed. */
async function removeIfEmpty(journals: Disk, name: string): Promise<void> {
  const directory = await journals.directory(name);
  const left = [...(await directory.list()), ...(await directory.listDirectories())];
  if (left.length === 0) await journals.removeDirectory(name);
}

/** The engine works in blocks of 4096 bytes, also for volumes whose users see 512. */
function wholeBlocks(volume: Volume): BlockDevice {
  return volume.blockSizeBytes === BLOCK_BYTES ? volume : new WholeBlockDevice(volume);
}

class WholeBlockDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes = BLOCK_BYTES;
  readonly readOnly: boolean;
  readonly #volume: Volume;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.sizeBytes = volume.sizeBytes;
    this.readOnly = volume.readOnly;
  }

  read(offset: number, target: Buffer): MaybePromise<void> {
    return this.#volume.read(offset, target);
  }

  write(offset: number, source: Buffer, fua: boolean): MaybePromise<void> {
    return this.#volume.write(offset, source, fua);
  }

  writeZeroes(offset: number, length: number, fua: boolean): MaybePromise<void> {
    return this.#volume.writeZeroes(offset, length, fua);
  }

  trim(offset: number, length: number, fua: boolean): MaybePromise<void> {
    return this.#volume.trim(offset, length, fua);
  }

  flush(): MaybePromise<void> {
    return this.#volume.flush();
  }

  beginBatch(): void {
    this.#volume.beginBatch();
  }

  commitBatch(): void {
    this.#volume.commitBatch();
  }

  async close(): Promise<void> {
    await this.#volume.close();
  }
}
