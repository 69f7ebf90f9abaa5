/**
 * What a restarted server does with what its predecessor left, as two tables: exactly one row matches, and a test
 * visits every one. Nothing here acts; registry.ts and attachment.ts do.
 *
 * First table: the record in the run directory against the kernel's device of the same backend identifier.
 * Second table: how reopening the volume ended ("resume": only where nobody owned it in between).
 */
import { assert } from "../base/assert.ts";
import type { ErrorKind } from "../base/errors.ts";

export type RecordCondition = "valid" | "damaged" | "absent";
/** "free": configured, and nothing is seen to use it. */
export type DeviceCondition = "in-use" | "free" | "absent";

/**
 * resume: open the volume and give the device a new socket. finish: the device is gone or never came; open the volume,
 * upload what its journal holds, close it, forget it. disconnect: nobody can serve the device, nobody uses it.
 * report: nobody can serve the device, but it is in use: an operator must unmount it. discard: remove the record.
 */
export type RestartAction = "resume" | "finish" | "disconnect" | "report" | "discard";

interface RestartRow {
  record: RecordCondition;
  device: DeviceCondition;
  action: RestartAction;
}

export const restartTable: readonly RestartRow[] = [
  { record: "valid", device: "in-use", action: "resume" },
  { record: "valid", device: "free", action: "resume" },
  { record: "valid", device: "absent", action: "finish" },
  { record: "damaged", device: "in-use", action: "report" },
  { record: "damaged", device: "free", action: "disconnect" },
  { record: "damaged", device: "absent", action: "discard" },
  { record: "absent", device: "in-use", action: "report" },
  { record: "absent", device: "free", action: "disconnect" },
];

/** The one row for what was found. */
export function restartAction(record: RecordCondition, device: DeviceCondition): RestartAction {
  const rows = restartTable.filter((row) => row.record === record && row.device === device);
  assert(rows.length === 1, `restart table has ${rows.length} rows for record ${record} and device ${device}`);
  return rows[0].action;
}

/**
 * serve: give the device its new socket. break: the device answers errors until it is detached. retry: later again,
 * the kernel waits. close: upload and close. forget: nothing of it can be saved any more. keep: stay listed as failed
 * until somebody looks and detaches.
 */
export type ReopenAction = "serve" | "break" | "retry" | "close" | "forget" | "keep";

export const reopenTable: Readonly<
  Record<"ok" | ErrorKind, { withDevice: ReopenAction; withoutDevice: ReopenAction }>
> = {
  ok: { withDevice: "serve", withoutDevice: "close" },
  fenced: { withDevice: "break", withoutDevice: "forget" },
  "in-use": { withDevice: "break", withoutDevice: "forget" },
  "not-found": { withDevice: "break", withoutDevice: "forget" },
  conflict: { withDevice: "break", withoutDevice: "keep" },
  corrupt: { withDevice: "break", withoutDevice: "keep" },
  invalid: { withDevice: "retry", withoutDevice: "retry" },
  busy: { withDevice: "retry", withoutDevice: "retry" },
  exhausted: { withDevice: "retry", withoutDevice: "retry" },
  unavailable: { withDevice: "retry", withoutDevice: "retry" },
};
