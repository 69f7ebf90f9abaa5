/**
 * JSON lines for base/log.ts's Log: {"level":"info","time":"…","message":"…", fields…}.
 * Lines are written synchronously and whole, so that the last words of a dying process are there and lines of several
 * threads do not mix. What cannot be written (a closed pipe, a reader that stands still) is dropped: logging never ends
 * the process and never holds it up for long. Every line goes through the Redactor; a Log must never be built around it.
 * Written by hand because every thread of a server that restarts loads it: a library took as long as all other modules
 * of the main thread's start together.
 */
import { writeSync } from "node:fs";
import type { Log, LogFields } from "../base/log.ts";
import { systemClock } from "../base/system-clock.ts";
import { Redactor } from "./redaction.ts";

export const logLevels = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

export interface LoggerOptions {
  level: LogLevel;
  /** Bound to every line: process, node. */
  fields: LogFields;
  redactor: Redactor;
  /** Where lines go; default: standard output. */
  destination?: LogDestination;
}

export interface LogDestination {
  write(line: string): void;
}

/** A pipe that somebody has made non-blocking may be full: its reader is waited for, this often for this long. */
const fullPipe = { attempts: 100, waitMs: 5 };
const waiting = new Int32Array(new SharedArrayBuffer(4));

export function createLogger(options: LoggerOptions): Log {
  const { redactor, destination = standardOutput } = options;
  const lowest = logLevels.indexOf(options.level);
  const bind = (bound: LogFields): Log => {
    const write = (level: LogLevel, message: string, fields: LogFields = {}): void => {
      if (logLevels.indexOf(level) < lowest) return;
      const head = { level, time: new Date(systemClock.now()).toISOString() };
      destination.write(`${lineOf(head, bound, fields, redactor, message)}\n`);
    };
    return {
      debug: (message, fields) => write("debug", message, fields),
      info: (message, fields) => write("info", message, fields),
      warn: (message, fields) => write("warn", message, fields),
      error: (message, fields) => write("error", message, fields),
      child: (fields) => bind({ ...bound, ...redactor.redactFields(fields) }),
    };
  };
  return bind(redactor.redactFields(options.fields));
}

/** `bound` is redacted already. No field takes the place of level, time or message. */
function lineOf(head: object, bound: LogFields, fields: LogFields, redactor: Redactor, message: string): string {
  try {
    const own = { ...head, message: redactor.redactText(message) };
    return JSON.stringify(Object.assign({ ...head }, bound, redactor.redactFields(fields), own));
  } catch {
    return JSON.stringify({ ...head, message: "a log line could not be written" });
  }
}

const standardOutput: LogDestination = {
  write(line) {
    let bytes: Uint8Array = Buffer.from(line);
    for (let attempt = 0; bytes.length > 0 && attempt < fullPipe.attempts;) {
      try {
        bytes = bytes.subarray(writeSync(1, bytes));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EAGAIN") return;
        Atomics.wait(waiting, 0, 0, fullPipe.waitMs);
        attempt += 1;
      }
    }
  },
};
