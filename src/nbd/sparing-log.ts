/**
 * A log for what strangers can cause as often as they like: of its warnings one in five seconds is written, and how many
 * were left out since stands on the next one. Everything else passes.
 */
import type { Clock } from "../base/clock.ts";
import type { Log, LogFields } from "../base/log.ts";

const INTERVAL_MS = 5000;

export function sparingLog(log: Log, clock: Clock): Log {
  let quietUntilMs = -Infinity;
  let leftOut = 0;
  return {
    debug: (message, fields) => log.debug(message, fields),
    info: (message, fields) => log.info(message, fields),
    error: (message, fields) => log.error(message, fields),
    child: (fields) => log.child(fields),
    warn(message: string, fields: LogFields = {}): void {
      const nowMs = clock.monotonicMs();
      if (nowMs < quietUntilMs) {
        leftOut += 1;
        return;
      }
      quietUntilMs = nowMs + INTERVAL_MS;
      log.warn(message, leftOut === 0 ? fields : { ...fields, leftOut });
      leftOut = 0;
    },
  };
}
