/**
 * JSON lines for base/log.ts's Log, by pino: {"level":"info","time":"…","message":"…", fields…}.
 * Lines are written synchronously and whole, so that the last words of a dying process are there and lines of several
 * threads do not mix. What cannot be written (a closed pipe) is dropped: logging never ends the process.
 * Every line goes through the Redactor; a Log must never be built around it.
 */
import pino from "pino";
import type { Log, LogFields } from "../base/log.ts";
import { Redactor } from "./redaction.ts";

export const logLevels = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

export interface LoggerOptions {
  level: LogLevel;
  /** Bound to every line: process, node. */
  fields: LogFields;
  redactor: Redactor;
  /** Where lines go; default: standard output. */
  destination?: { write(line: string): void };
}

export function createLogger(options: LoggerOptions): Log {
  const destination = options.destination ?? standardOutput();
  const logger = pino(
    {
      level: options.level,
      base: null,
      messageKey: "message",
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination,
  );
  return wrap(logger.child(options.redactor.redactFields(options.fields)), options.redactor);
}

function standardOutput(): { write(line: string): void } {
  const destination = pino.destination({ fd: 1, sync: true });
  destination.on("error", () => {});
  return destination;
}

function wrap(logger: pino.Logger, redactor: Redactor): Log {
  const write = (level: LogLevel, message: string, fields: LogFields | undefined): void => {
    if (!logger.isLevelEnabled(level)) return;
    try {
      logger[level](fields === undefined ? {} : redactor.redactFields(fields), redactor.redactText(message));
    } catch {
      logger[level]("a log line could not be written");
    }
  };
  return {
    debug: (message, fields) => write("debug", message, fields),
    info: (message, fields) => write("info", message, fields),
    warn: (message, fields) => write("warn", message, fields),
    error: (message, fields) => write("error", message, fields),
    child: (fields) => wrap(logger.child(redactor.redactFields(fields)), redactor),
  };
}
