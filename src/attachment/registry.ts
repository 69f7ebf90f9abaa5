/**
 * All attachments of a server: the data plane behind the control API.
 * Calls are idempotent by volume id. Concurrent calls for one volume join or wait for each other, never run twice;
 * different volumes never wait for each other. What is true is kept in the kernel and in records, so that recover()
 * finds it again after a crash.
 */
import { OperationError } from "../base/errors.ts";
import type { VolumeId } from "../volume/identity.ts";
import { VolumeAttachment } from "./attachment.ts";
import type { AttachmentParts } from "./attachment.ts";
import type { StoredRecord } from "./attachment-record.ts";
import type { Attachment, AttachOptions, DataPlane } from "./data-plane.ts";
import { backendPrefix } from "./kernel-devices.ts";
import type { KernelDevice } from "./kernel-devices.ts";
import { restartTable, reuseTable } from "./restart.ts";
import type { AskedAttachment, AttachmentCondition, DeviceCondition, RecordCondition } from "./restart.ts";

export class AttachmentRegistry implements DataPlane {
  readonly #parts: AttachmentParts;
  readonly #attachments = new Map<VolumeId, VolumeAttachment>();
  #stopping = false;

  constructor(parts: AttachmentParts) {
    this.#parts = parts;
  }

  /** How many volumes are attached or on the way. */
  get count(): number {
    return this.#attachments.size;
  }

  async attach(options: AttachOptions): Promise<Attachment> {
    for (;;) {
      this.#mustNotStop(options.volumeId);
      const existing = this.#attachments.get(options.volumeId);
      if (existing === undefined) return await this.#attachNew(options);
      const same = await this.#reuse(existing, options);
      if (same !== undefined) return same;
    }
  }

  async detach(volumeId: VolumeId): Promise<void> {
    const attachment = this.#attachments.get(volumeId);
    if (attachment !== undefined) await this.#detach(attachment);
  }

  async getAttachment(volumeId: VolumeId): Promise<Attachment | undefined> {
    return await this.#attachments.get(volumeId)?.status();
  }

  async listAttachments(): Promise<Attachment[]> {
    return await Promise.all([...this.#attachments.values()].map((attachment) => attachment.status()));
  }

  async flush(volumeId: VolumeId): Promise<void> {
    const attachment = this.#attachments.get(volumeId);
    if (attachment === undefined) {
      throw new OperationError("not-found", "the volume is not attached here", { context: { volumeId } });
    }
    await attachment.flush();
  }

  /**
   * After a start: finds what the process before left, and begins to resume it. Returns once everything is known
   * (attach and detach may be called then) and the clear cases are dealt with; the rest goes on in the background.
   */
  async recover(): Promise<void> {
    const { kernel, records, nodeId } = this.#parts;
    const prefix = backendPrefix(nodeId);
    const devices = new Map<string, KernelDevice>();
    for (const device of await kernel.list(prefix)) devices.set(device.backend.slice(prefix.length), device);
    const stored = new Map((await records.list()).map((entry) => [String(entry.volumeId), entry]));
    for (const name of new Set([...stored.keys(), ...devices.keys()])) {
      await this.#recoverOne(name, stored.get(name), devices.get(name));
    }
  }

  /** Resolves once every attachment that recover() found is served again, or never will be. */
  async resumed(): Promise<void> {
    await Promise.all([...this.#attachments.values()].map((attachment) => attachment.ready()));
  }

  /** No new call is taken; every attachment is left for the next process. Resolves when all have answered. */
  async handOver(): Promise<void> {
    this.#stopping = true;
    const results = await Promise.allSettled(
      [...this.#attachments.values()].map((attachment) => attachment.handOver()),
    );
    for (const result of results) {
      if (result.status === "rejected") {
        this.#parts.log.error("an attachment could not be left in order", {
          operation: "hand-over",
          error: result.reason,
        });
      }
    }
  }

  #mustNotStop(volumeId: VolumeId): void {
    if (!this.#stopping) return;
    throw new OperationError("unavailable", "the server is stopping: try again once it is back", {
      context: { volumeId },
    });
  }

  async #attachNew(options: AttachOptions): Promise<Attachment> {
    const attachment = this.#add(options);
    try {
      await attachment.attach();
      return await attachment.status();
    } finally {
      this.#forgetClosed(attachment);
    }
  }

  /** What is attached already, where it serves; undefined when it has gone and the caller may start anew. */
  async #reuse(existing: VolumeAttachment, options: AttachOptions): Promise<Attachment | undefined> {
    let action = reuseAction(existing, options);
    if (action === "answer" || action === "wait") {
      await existing.ready();
      action = reuseAction(existing, options);
    }
    if (action === "answer") return await existing.status();
    if (action === "detach") await this.#detach(existing);
    return undefined;
  }

  async #detach(attachment: VolumeAttachment): Promise<void> {
    await attachment.detach();
    this.#forgetClosed(attachment);
  }

  #add(options: AttachOptions): VolumeAttachment {
    const attachment = new VolumeAttachment(this.#parts, options);
    this.#attachments.set(options.volumeId, attachment);
    return attachment;
  }

  #forgetClosed(attachment: VolumeAttachment): void {
    const { volumeId } = attachment.options;
    if (attachment.phase === "closed" && this.#attachments.get(volumeId) === attachment) {
      this.#attachments.delete(volumeId);
    }
  }

  async #recoverOne(name: string, stored: StoredRecord | undefined, device: KernelDevice | undefined): Promise<void> {
    const { kernel, records, log } = this.#parts;
    const usage = device === undefined ? undefined : await kernel.usage(device);
    const found = { record: recordCondition(stored), device: deviceCondition(device, usage) };
    const { action, name: state } = restartTable.decide(found);
    const fields = { operation: "recover", volumeId: name, state, action, devicePath: device?.devicePath, usage };
    log.info("found an attachment of the process before", fields);
    switch (action) {
      case "resume":
      case "finish":
        if (stored?.record !== undefined) {
          const attachment = this.#add(stored.record.options);
          void attachment.recover(stored.record, device).finally(() => this.#forgetClosed(attachment));
        }
        return;
      case "report":
        log.error("a device cannot be served any more because its record is lost: unmount it, then restart", fields);
        return;
      default:
        if (device !== undefined) await kernel.disconnect(device);
        if (stored !== undefined) await records.remove(stored.volumeId);
    }
  }
}

function recordCondition(stored: StoredRecord | undefined): RecordCondition {
  if (stored === undefined) return "absent";
  return stored.record === undefined ? "damaged" : "valid";
}

function deviceCondition(device: KernelDevice | undefined, usage: string | undefined): DeviceCondition {
  if (device === undefined) return "absent";
  return usage === undefined ? "free" : "in-use";
}

/** "refuse" is thrown. */
function reuseAction(existing: VolumeAttachment, asked: AttachOptions): "answer" | "wait" | "detach" {
  const differs = differingAccess(existing.options, asked);
  const { action } = reuseTable.decide({
    attachment: attachmentCondition(existing),
    asked: differs === undefined ? askedAttachment(existing.options, asked) : "other access",
  });
  if (action !== "refuse") return action;
  throw new OperationError("conflict", "the volume is attached with other access: detach it first", {
    context: { volumeId: asked.volumeId, differs: differs ?? "nothing" },
  });
}

function attachmentCondition({ phase, failure }: VolumeAttachment): AttachmentCondition {
  switch (phase) {
    case "opening":
    case "serving":
      return "on the way";
    case "attached":
      return failure === undefined ? "attached" : "failed";
    case "left":
      return "left";
    default:
      return "ending";
  }
}

/** Any other publication is a newer one: a volume is published again only after it was taken back. */
function askedAttachment(attached: AttachOptions, asked: AttachOptions): AskedAttachment {
  return asked.publication !== 0 && asked.publication !== attached.publication ? "a newer publication" : "the same";
}

function differingAccess(attached: AttachOptions, asked: AttachOptions): string | undefined {
  if (attached.readOnly !== asked.readOnly) return "readOnly";
  if (attached.durability !== asked.durability) return "durability";
  const isElsewhere = (["url", "endpoint", "region"] as const).some(
    (key) => attached.location[key] !== asked.location[key],
  );
  return isElsewhere ? "location" : undefined;
}
