/**
 * A device that answers every request with an error: what stands behind a kernel device whose volume may not be served
 * any more (fenced while the server was down, corrupt). The file system above then learns of it at once instead of
 * waiting for hours. It must never answer a request well, not even a flush.
 */
import { OperationError } from "../base/errors.ts";
import type { BlockDevice } from "../block/device.ts";
import type { Epoch } from "../volume/identity.ts";
import type { BrokenRequest } from "./volume-host.ts";
import type { HostedVolume } from "./volume-worker.ts";

export class BrokenDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly #request: BrokenRequest;

  constructor(request: BrokenRequest) {
    this.sizeBytes = request.sizeBytes;
    this.blockSizeBytes = request.blockSizeBytes;
    this.readOnly = request.readOnly;
    this.#request = request;
  }

  error(): OperationError {
    const { failure, volumeId } = this.#request;
    return new OperationError("fenced", `the volume cannot be served (${failure}): unmount and detach it`, {
      context: { volumeId },
    });
  }

  read(): never {
    throw this.error();
  }

  write(): never {
    throw this.error();
  }

  writeZeroes(): never {
    throw this.error();
  }

  trim(): never {
    throw this.error();
  }

  flush(): never {
    throw this.error();
  }

  async close(): Promise<void> {}
}

/** The device in the place of a volume that is open. */
export function brokenVolume(request: BrokenRequest): HostedVolume {
  const device = new BrokenDevice(request);
  const { volumeId, sizeBytes, blockSizeBytes, failure } = request;
  return {
    blockSizeBytes,
    device,
    byteDevice: device,
    status: () => ({
      volumeId,
      state: "failed",
      failure,
      epoch: 0 as Epoch,
      durability: "s3",
      sizeBytes,
      blockSizeBytes,
      neverWritten: false,
      dirtyBytes: 0,
      behindMs: 0,
      journalUsedBytes: 0,
      journalLimitBytes: 0,
      journalFullSeconds: Infinity,
    }),
    drain: () => Promise.reject(device.error()),
    leave: async () => {},
    close: async () => {},
    onFailure: (listener) => listener(failure),
  };
}
