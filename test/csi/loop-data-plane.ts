/**
 * A data plane over loop devices: sparse files in a directory stand for volumes, so that the node service works on
 * real devices and real mounts without server and kernel nbd. It needs root and the loop driver.
 * Whether a volume was ever written is told by its file: no block allocated.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { open, rm, stat } from "node:fs/promises";
import { promisify } from "node:util";
import type { Attachment, AttachOptions, DataPlane } from "../../src/attachment/data-plane.ts";
import { OperationError } from "../../src/base/errors.ts";
import type { VolumeId } from "../../src/volume/identity.ts";

const run = promisify(execFile);

/** True where this process may make loop devices and mount them. */
export async function canUseLoopDevices(): Promise<boolean> {
  if (process.getuid?.() !== 0) return false;
  try {
    if (!existsSync("/dev/loop-control")) await run("modprobe", ["loop"]);
    await run("losetup", ["--find"]);
    return true;
  } catch {
    return false;
  }
}

interface LoopAttachment {
  options: AttachOptions;
  device: string;
}

export class LoopDataPlane implements DataPlane {
  readonly #directory: string;
  readonly #attached = new Map<VolumeId, LoopAttachment>();
  readonly #lost: string[] = [];
  sizeBytes: number;
  /** Tests set it to make the volume look failed. */
  failure = "";

  constructor(directory: string, sizeBytes: number) {
    this.#directory = directory;
    this.sizeBytes = sizeBytes;
  }

  fileOf(volumeId: string): string {
    return `${this.#directory}/${volumeId}.img`;
  }

  async attach(options: AttachOptions): Promise<Attachment> {
    const attached = this.#attached.get(options.volumeId);
    if (attached !== undefined) {
      if (attached.options.readOnly !== options.readOnly)
        throw new OperationError("conflict", "attached with other access");
      return this.#describe(attached);
    }
    const file = this.fileOf(options.volumeId);
    if (!existsSync(file)) {
      const handle = await open(file, "w");
      await handle.truncate(this.sizeBytes);
      await handle.close();
    }
    const access = options.readOnly ? ["--read-only"] : [];
    const { stdout } = await run("losetup", ["--find", "--show", ...access, file]);
    const created = { options, device: stdout.trim() };
    this.#attached.set(options.volumeId, created);
    return this.#describe(created);
  }

  async detach(volumeId: VolumeId): Promise<void> {
    const attached = this.#attached.get(volumeId);
    if (attached === undefined) return;
    await run("losetup", ["--detach", attached.device]);
    this.#attached.delete(volumeId);
  }

  async getAttachment(volumeId: VolumeId): Promise<Attachment | undefined> {
    const attached = this.#attached.get(volumeId);
    return attached === undefined ? undefined : this.#describe(attached);
  }

  async listAttachments(): Promise<Attachment[]> {
    return Promise.all([...this.#attached.values()].map((attached) => this.#describe(attached)));
  }

  async flush(): Promise<void> {}

  /** Forgets an attachment as a server without its records would; the device stays. */
  lose(volumeId: VolumeId): void {
    const attached = this.#attached.get(volumeId);
    if (attached !== undefined) this.#lost.push(attached.device);
    this.#attached.delete(volumeId);
  }

  /** Detaches everything and removes the files. */
  async close(): Promise<void> {
    for (const volumeId of this.#attached.keys()) await this.detach(volumeId);
    for (const device of this.#lost) await run("losetup", ["--detach", device]);
    await rm(this.#directory, { recursive: true, force: true });
  }

  async #describe({ options, device }: LoopAttachment): Promise<Attachment> {
    const status = await stat(this.fileOf(options.volumeId));
    return {
      volumeId: options.volumeId,
      state: this.failure === "" ? "attached" : "failed",
      devicePath: device,
      sizeBytes: status.size,
      blockSizeBytes: 512,
      readOnly: options.readOnly,
      neverWritten: status.blocks === 0,
      epoch: 1,
      dirtyBytes: 0,
      behindSeconds: 0,
      failure: this.failure,
    };
  }
}
