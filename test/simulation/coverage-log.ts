/** A log that counts what the product says: the states that it goes through are events of the simulation's coverage. */
import type { Log } from "../../src/base/log.ts";
import type { Coverage } from "./coverage.ts";

export function coverageLog(coverage: Coverage): Log {
  const count = (message: string): void => coverage.add(`says: ${message}`);
  const log: Log = { debug: count, info: count, warn: count, error: count, child: () => log };
  return log;
}
