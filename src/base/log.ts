/**
 * The logger as a dependency: every line carries volume id and operation where they are known, bound by child().
 * observability/logger.ts writes JSON lines; nullLog is for code that has nobody to tell.
 */
export type LogFields = Readonly<Record<string, unknown>>;

export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** A logger that adds `fields` to every line. */
  child(fields: LogFields): Log;
}

export const nullLog: Log = {
  debug() {},
  info() {},
  warn() {},
  error() {},
  child: () => nullLog,
};
