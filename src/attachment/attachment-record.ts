/**
 * The records that let a restarted server find its attachments: one JSON file per volume in the run directory, mode
 * 0600 because it holds the secrets that reopen the volume.
 * Written whole (temporary file, sync, rename) before the kernel device is connected, removed after the volume was
 * closed: so every device of ours has a record, and a record without a device is an attach or detach to be finished.
 * A record that cannot be read is reported, never guessed at.
 */
import type { Disk } from "../base/disk.ts";
import { isKind, OperationError } from "../base/errors.ts";
import { isVolumeId } from "../volume/identity.ts";
import type { VolumeId } from "../volume/identity.ts";
import type { AttachOptions } from "./data-plane.ts";

export interface AttachmentRecord {
  options: AttachOptions;
  /** Identifier of the kernel device. */
  backend: string;
  sizeBytes: number;
  blockSizeBytes: number;
}

export type StoredRecord = { volumeId: VolumeId; record: AttachmentRecord | undefined };

const suffix = ".json";
const temporarySuffix = ".tmp";
const recordVersion = 1;
const maxRecordBytes = 64 * 1024;
const durabilities: readonly unknown[] = ["s3", "local", ""];

export class AttachmentRecords {
  readonly #disk: Disk;

  constructor(disk: Disk) {
    this.#disk = disk;
  }

  async write(record: AttachmentRecord): Promise<void> {
    const name = `${record.options.volumeId}${suffix}`;
    const temporary = `${name}${temporarySuffix}`;
    const bytes = Buffer.from(JSON.stringify({ version: recordVersion, ...record }));
    await this.#disk.remove(temporary);
    const file = await this.#disk.open(temporary, { create: true });
    try {
      await file.write(bytes, 0);
      await file.sync();
    } finally {
      await file.close();
    }
    await this.#disk.rename(temporary, name);
    await this.#disk.sync();
  }

  async remove(volumeId: VolumeId): Promise<void> {
    await this.#disk.remove(`${volumeId}${suffix}`);
    await this.#disk.sync();
  }

  /** All records; `record` is undefined where the file cannot be understood. Leftovers of a crash are removed. */
  async list(): Promise<StoredRecord[]> {
    const result: StoredRecord[] = [];
    for (const name of await this.#disk.list()) {
      if (name.endsWith(temporarySuffix)) await this.#disk.remove(name);
      const volumeId = name.endsWith(suffix) ? name.slice(0, -suffix.length) : "";
      if (isVolumeId(volumeId)) result.push({ volumeId, record: await this.#read(name, volumeId) });
    }
    return result;
  }

  async #read(name: string, volumeId: VolumeId): Promise<AttachmentRecord | undefined> {
    try {
      const file = await this.#disk.open(name);
      try {
        if (file.sizeBytes() > maxRecordBytes) return undefined;
        const bytes = Buffer.alloc(file.sizeBytes());
        await file.read(bytes, 0);
        return decodeRecord(bytes, volumeId);
      } finally {
        await file.close();
      }
    } catch (error) {
      if (isKind(error, "not-found", "corrupt")) return undefined;
      throw error;
    }
  }
}

function decodeRecord(bytes: Buffer, volumeId: VolumeId): AttachmentRecord {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw damaged(volumeId, cause);
  }
  const record = asRecord(value);
  const options = asRecord(record.options);
  const location = asRecord(options.location);
  const texts = [location.url, location.endpoint, location.region, record.backend];
  const numbers = [options.publication, record.sizeBytes, record.blockSizeBytes];
  const valid =
    record.version === recordVersion &&
    options.volumeId === volumeId &&
    typeof options.readOnly === "boolean" &&
    durabilities.includes(options.durability) &&
    isMap(options.secrets) &&
    texts.every((text) => typeof text === "string") &&
    numbers.every((number) => Number.isSafeInteger(number) && (number as number) >= 0) &&
    Object.values(options.secrets).every((secret) => typeof secret === "string");
  if (!valid) throw damaged(volumeId, undefined);
  return value as AttachmentRecord;
}

function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function asRecord(value: unknown): Record<string, unknown> {
  return isMap(value) ? value : {};
}

function damaged(volumeId: VolumeId, cause: unknown): OperationError {
  return new OperationError("corrupt", "the record of an attachment is damaged", { cause, context: { volumeId } });
}
