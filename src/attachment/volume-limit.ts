/**
 * A VolumeHost with a bound on the volumes that are open at the same time, attached and exported ones together: each takes
 * memory, descriptors and a journal. One more is refused as "exhausted" (RESOURCE_EXHAUSTED) before anything of it is
 * opened. What this node had before a restart is opened whatever the bound: it is in use.
 */
import { OperationError } from "../base/errors.ts";
import type { BrokenRequest, OpenRequest, ServedVolume, VolumeHost } from "./volume-host.ts";

export class LimitedHost implements VolumeHost {
  readonly #host: VolumeHost;
  readonly #limit: number;
  #open = 0;

  constructor(host: VolumeHost, limit: number) {
    this.#host = host;
    this.#limit = limit;
  }

  async open(request: OpenRequest): Promise<ServedVolume> {
    if (this.#open >= this.#limit && request.mode === "take") {
      throw new OperationError("exhausted", "this node has as many volumes open as it may: detach some", {
        context: { volumeId: request.volumeId, open: this.#open },
      });
    }
    return await this.#count(() => this.#host.open(request));
  }

  async openBroken(request: BrokenRequest): Promise<ServedVolume> {
    return await this.#count(() => this.#host.openBroken(request));
  }

  async #count(open: () => Promise<ServedVolume>): Promise<ServedVolume> {
    this.#open += 1;
    try {
      return new CountedVolume(await open(), () => (this.#open -= 1));
    } catch (error) {
      this.#open -= 1;
      throw error;
    }
  }
}

/** Tells once that the volume is open no more: a close that fails may be repeated. */
class CountedVolume implements ServedVolume {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly status: ServedVolume["status"];
  readonly serve: ServedVolume["serve"];
  readonly drain: ServedVolume["drain"];
  readonly onFailure: ServedVolume["onFailure"];
  readonly #volume: ServedVolume;
  #gone: (() => void) | undefined;

  constructor(volume: ServedVolume, gone: () => void) {
    this.sizeBytes = volume.sizeBytes;
    this.blockSizeBytes = volume.blockSizeBytes;
    this.readOnly = volume.readOnly;
    this.status = () => volume.status();
    this.serve = (request) => volume.serve(request);
    this.drain = () => volume.drain();
    this.onFailure = (listener) => volume.onFailure(listener);
    this.#volume = volume;
    this.#gone = gone;
  }

  async leave(): Promise<void> {
    await this.#volume.leave();
    this.#forget();
  }

  async close(): Promise<void> {
    await this.#volume.close();
    this.#forget();
  }

  #forget(): void {
    this.#gone?.();
    this.#gone = undefined;
  }
}
