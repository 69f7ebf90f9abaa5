/**
 * What a server does with what it finds of an attachment, as tables. Nothing here acts; registry.ts and attachment.ts do.
 *
 * After a start: the record in the run directory against the kernel's device of the same backend identifier
 * (restartTable), then how reopening the volume ended (reopenTable; "resume" succeeds only where nobody owned it in
 * between, and says "fenced" where the volume was deleted for certain). At an attach: the attachment that is there already (reuseTable). At an attach and a detach: each of the
 * kernel's devices whose identifier begins as ours does (deviceTable).
 */
import { DecisionTable } from "../base/decision-table.ts";
import type { ErrorKind } from "../base/errors.ts";

/** "damaged": cut off, of another version, or of another volume. */
export type RecordCondition = "valid" | "damaged" | "absent";
/** "free": configured, and nothing is seen to use it. */
export type DeviceCondition = "in-use" | "free" | "absent";

export type RestartAction = "resume" | "finish" | "disconnect" | "report" | "discard";

export const restartTable = new DecisionTable<{ record: RecordCondition; device: DeviceCondition }, RestartAction>({
  title: "What a server that starts finds of an attachment",
  facts: { record: ["valid", "damaged", "absent"], device: ["in-use", "free", "absent"] },
  actions: {
    resume: "open the volume, give the device a new socket (next table)",
    finish: "open the volume, upload what its journal holds, close and forget it (next table)",
    disconnect: "free the device, remove the record",
    report: "leave the device as it is: it is in use and nobody can serve it, an operator must unmount it",
    discard: "remove the record",
  },
  rows: [
    {
      name: "a whole attachment, connected or waiting",
      when: { record: "valid", device: ["in-use", "free"] },
      action: "resume",
    },
    { name: "an attach or detach that was cut short", when: { record: "valid", device: "absent" }, action: "finish" },
    {
      name: "a device in use, and no record that can be read",
      when: { record: ["damaged", "absent"], device: "in-use" },
      action: "report",
    },
    {
      name: "a device that nobody uses, and no record that can be read",
      when: { record: ["damaged", "absent"], device: "free" },
      action: "disconnect",
    },
    { name: "a damaged record alone", when: { record: "damaged", device: "absent" }, action: "discard" },
    { name: "nothing at all", when: { record: "absent", device: "absent" }, action: "impossible" },
  ],
});

export type ReopenAction = "serve" | "break" | "retry" | "close" | "forget" | "keep";

export const reopenTable = new DecisionTable<{ outcome: "ok" | ErrorKind; device: "yes" | "no" }, ReopenAction>({
  title: "How reopening the volume ended",
  facts: {
    outcome: [
      "ok",
      "invalid",
      "not-found",
      "conflict",
      "busy",
      "in-use",
      "exhausted",
      "unavailable",
      "fenced",
      "corrupt",
    ],
    device: ["yes", "no"],
  },
  actions: {
    serve: "give the device its new socket",
    break: "the device answers errors until it is detached",
    retry: "again later; the kernel waits meanwhile",
    close: "upload and close",
    forget: "nothing of it can be saved any more",
    keep: "stay listed as failed until somebody looks and detaches",
  },
  rows: [
    { name: "the volume is open and its device waits", when: { outcome: "ok", device: "yes" }, action: "serve" },
    { name: "the volume is open and has no device", when: { outcome: "ok", device: "no" }, action: "close" },
    {
      name: "the volume is lost to its device",
      when: { outcome: ["fenced", "in-use", "conflict", "corrupt"], device: "yes" },
      action: "break",
    },
    {
      name: "the volume is another's now, or gone",
      when: { outcome: ["fenced", "in-use"], device: "no" },
      action: "forget",
    },
    {
      name: "the volume cannot be opened, and its journal may hold what exists nowhere else",
      when: { outcome: ["conflict", "corrupt"], device: "no" },
      action: "keep",
    },
    {
      name: "the volume cannot be opened now",
      when: { outcome: ["invalid", "busy", "exhausted", "unavailable"] },
      action: "retry",
    },
    {
      name: "the store shows no bucket, or nothing of the volume: it may be the wrong answer of a moment",
      when: { outcome: "not-found" },
      action: "retry",
    },
  ],
});

export type AttachmentCondition = "on the way" | "attached" | "failed" | "ending" | "left";
export type AskedAttachment = "the same" | "a newer publication" | "other access";

export const reuseTable = new DecisionTable<
  { attachment: AttachmentCondition; asked: AskedAttachment },
  "answer" | "wait" | "detach" | "refuse"
>({
  title: "An attach of what is attached already",
  facts: {
    attachment: ["on the way", "attached", "failed", "ending", "left"],
    asked: ["the same", "a newer publication", "other access"],
  },
  actions: {
    answer: "wait until the device takes I/O, look again, answer with it",
    wait: "wait until it is decided, then look again",
    detach: "detach it, then attach anew; *in-use* where the device is in use",
    refuse: "*conflict*: detach it first",
  },
  rows: [
    {
      name: "it is attached as asked",
      when: { attachment: "attached", asked: "the same" },
      action: "answer",
    },
    {
      name: "it is attached for an earlier publication: another node may have owned the volume since",
      when: { attachment: "attached", asked: "a newer publication" },
      action: "detach",
    },
    {
      name: "it failed: it was fenced, or is corrupt, or lost its device",
      when: { attachment: "failed", asked: ["the same", "a newer publication"] },
      action: "detach",
    },
    { name: "it is being detached", when: { attachment: "ending" }, action: "detach" },
    {
      name: "it is being attached or resumed",
      when: { attachment: "on the way", asked: ["the same", "a newer publication"] },
      action: "wait",
    },
    {
      name: "it is left for the next process",
      when: { attachment: "left", asked: ["the same", "a newer publication"] },
      action: "wait",
    },
    {
      name: "it is there with other access",
      when: { attachment: ["on the way", "attached", "failed", "left"], asked: "other access" },
      action: "refuse",
    },
  ],
});

export const deviceTable = new DecisionTable<
  { identifier: "this volume's" | "another's"; usage: "in use" | "free" },
  "free" | "leave" | "refuse"
>({
  title: "A device of the kernel, before an attach and at a detach",
  facts: { identifier: ["this volume's", "another's"], usage: ["in use", "free"] },
  actions: {
    free: "free it",
    leave: "leave it alone",
    refuse: "*in-use*: unmount it first",
  },
  rows: [
    {
      name: "a device of this volume that nobody uses",
      when: { identifier: "this volume's", usage: "free" },
      action: "free",
    },
    {
      name: "a device of this volume in use",
      when: { identifier: "this volume's", usage: "in use" },
      action: "refuse",
    },
    { name: "a device with another identifier", when: { identifier: "another's" }, action: "leave" },
  ],
});
