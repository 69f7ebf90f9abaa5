/**
 * Volumes served to NBD clients without the kernel: the export's name is the volume's id. A volume is opened for the
 * first client and shared by all; some time after the last one left (clients such as qemu-img come several times in a
 * row) everything is uploaded and it is closed.
 *
 * | state   | clients | leaves it                                      |
 * |---------|---------|------------------------------------------------|
 * | opening | wait    | opened → open, error → gone                    |
 * | open    | ≥ 0     | idle → closing                                 |
 * | closing | wait    | closed → gone; error → open again, tried later |
 *
 * The handshake runs on the control thread, the transmission on the volume's: the device shown to the handshake only
 * tells sizes and must never be asked for data.
 */
import { AssertionError } from "../base/assert.ts";
import type { Clock, Timer } from "../base/clock.ts";
import { isKind } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { BlockDevice } from "../block/device.ts";
import type { ExportHandle, ExportSource } from "../nbd/export-source.ts";
import { isVolumeId } from "../volume/identity.ts";
import type { VolumeId } from "../volume/identity.ts";
import type { ServedVolume, VolumeHost } from "./volume-host.ts";

export interface VolumeExportsOptions {
  host: VolumeHost;
  clock: Clock;
  log: Log;
  idleMs: number;
  /** Ids of the volumes in the server's own store, for clients that ask what there is. */
  listVolumes(): Promise<string[]>;
}

export interface VolumeExport extends ExportHandle {
  readonly volume: ServedVolume;
}

interface OpenExport {
  opened: Promise<ServedVolume>;
  clients: number;
  idle: Timer | undefined;
  closing: Promise<void> | undefined;
}

export class VolumeExports implements ExportSource {
  readonly #options: VolumeExportsOptions;
  readonly #exports = new Map<VolumeId, OpenExport>();

  constructor(options: VolumeExportsOptions) {
    this.#options = options;
  }

  list(): Promise<string[]> {
    return this.#options.listVolumes();
  }

  async open(name: string): Promise<VolumeExport | undefined> {
    if (!isVolumeId(name)) return undefined;
    await this.#exports.get(name)?.closing;
    const entry = this.#exports.get(name) ?? this.#start(name);
    entry.clients += 1;
    entry.idle?.cancel();
    entry.idle = undefined;
    try {
      const volume = await entry.opened;
      return { volume, device: new RemoteDevice(volume), release: () => this.#release(name, entry) };
    } catch (error) {
      entry.clients -= 1;
      if (isKind(error, "not-found")) return undefined;
      throw error;
    }
  }

  /** Uploads and closes everything; for the end, when no client is left. */
  async close(): Promise<void> {
    await Promise.all(
      [...this.#exports].map(async ([volumeId, entry]) => {
        entry.idle?.cancel();
        this.#close(volumeId, entry);
        await entry.closing;
      }),
    );
  }

  #start(volumeId: VolumeId): OpenExport {
    const opened = this.#options.host.open({
      volumeId,
      location: { url: "", endpoint: "", region: "" },
      secrets: {},
      mode: "take",
      clientWaits: false,
      readOnly: false,
      durability: "",
      publication: 0,
    });
    const entry: OpenExport = { opened, clients: 0, idle: undefined, closing: undefined };
    this.#exports.set(volumeId, entry);
    opened.then(
      (volume) =>
        volume.onFailure((failure) => this.#options.log.error("an exported volume failed", { volumeId, failure })),
      () => this.#exports.delete(volumeId),
    );
    return entry;
  }

  #release(volumeId: VolumeId, entry: OpenExport): void {
    entry.clients -= 1;
    this.#closeWhenIdle(volumeId, entry);
  }

  #closeWhenIdle(volumeId: VolumeId, entry: OpenExport): void {
    if (entry.clients > 0) return;
    entry.idle = this.#options.clock.after(this.#options.idleMs, () => {
      entry.idle = undefined;
      if (entry.clients === 0) this.#close(volumeId, entry);
    });
  }

  #close(volumeId: VolumeId, entry: OpenExport): void {
    entry.closing ??= this.#closeNow(volumeId, entry).finally(() => {
      entry.closing = undefined;
    });
  }

  async #closeNow(volumeId: VolumeId, entry: OpenExport): Promise<void> {
    const { log } = this.#options;
    try {
      const volume = await entry.opened;
      await volume.close();
      this.#exports.delete(volumeId);
      log.info("an exported volume is closed", { operation: "export", volumeId });
    } catch (error) {
      log.error("an exported volume could not be closed", { operation: "export", volumeId, error });
      this.#closeWhenIdle(volumeId, entry);
    }
  }
}

/** Sizes for the handshake. */
class RemoteDevice implements BlockDevice {
  readonly sizeBytes: number;
  /** Clients may ask for any range: the volume's thread reads and writes the blocks at the edges. */
  readonly blockSizeBytes = 1;
  readonly readOnly: boolean;

  constructor(volume: ServedVolume) {
    this.sizeBytes = volume.sizeBytes;
    this.readOnly = volume.readOnly;
  }

  read(): never {
    return servedElsewhere();
  }

  write(): never {
    return servedElsewhere();
  }

  writeZeroes(): never {
    return servedElsewhere();
  }

  trim(): never {
    return servedElsewhere();
  }

  flush(): never {
    return servedElsewhere();
  }

  close(): never {
    return servedElsewhere();
  }
}

function servedElsewhere(): never {
  throw new AssertionError("bug: an export is served by its volume's thread");
}
