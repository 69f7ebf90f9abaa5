/** A block device in a plain file, for tests that kill the serving process: what was written is there for the next. */
import { closeSync, fdatasyncSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import type { BlockDevice } from "../../src/block/device.ts";

const zeroes = Buffer.alloc(1024 * 1024);

export class FileDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes = 4096;
  readonly readOnly = false;
  readonly #fd: number;

  constructor(path: string, sizeBytes: number) {
    this.sizeBytes = sizeBytes;
    this.#fd = openSync(path, "a+");
    closeSync(this.#fd);
    this.#fd = openSync(path, "r+");
    ftruncateSync(this.#fd, sizeBytes);
  }

  read(offset: number, target: Buffer): void {
    readSync(this.#fd, target, 0, target.length, offset);
  }

  write(offset: number, source: Buffer, fua: boolean): void {
    writeSync(this.#fd, source, 0, source.length, offset);
    if (fua) this.flush();
  }

  writeZeroes(offset: number, length: number, fua: boolean): void {
    for (let done = 0; done < length; done += zeroes.length) {
      writeSync(this.#fd, zeroes, 0, Math.min(zeroes.length, length - done), offset + done);
    }
    if (fua) this.flush();
  }

  trim(offset: number, length: number, fua: boolean): void {
    this.writeZeroes(offset, length, fua);
  }

  flush(): void {
    fdatasyncSync(this.#fd);
  }

  async close(): Promise<void> {
    this.flush();
    closeSync(this.#fd);
    await Promise.resolve();
  }
}
