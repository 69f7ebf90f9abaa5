/** A log that keeps its lines, as JSON, for tests to search. */
import type { Log, LogFields } from "../../src/base/log.ts";

export class RecordingLog implements Log {
  readonly lines: string[];
  readonly #bound: LogFields;

  constructor(lines: string[] = [], bound: LogFields = {}) {
    this.lines = lines;
    this.#bound = bound;
  }

  debug(message: string, fields: LogFields = {}): void {
    this.#write("debug", message, fields);
  }

  info(message: string, fields: LogFields = {}): void {
    this.#write("info", message, fields);
  }

  warn(message: string, fields: LogFields = {}): void {
    this.#write("warn", message, fields);
  }

  error(message: string, fields: LogFields = {}): void {
    this.#write("error", message, fields);
  }

  child(fields: LogFields): Log {
    return new RecordingLog(this.lines, { ...this.#bound, ...fields });
  }

  #write(level: string, message: string, fields: LogFields): void {
    this.lines.push(JSON.stringify({ level, message, ...this.#bound, ...fields }));
  }
}
