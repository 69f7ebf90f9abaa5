/**
 * Which blocks of the sources under test were reached, told by V8's precise coverage: what makes the fuzzer guided.
 * One session at a time; close() gives V8 its full speed back.
 */
import { type Profiler, Session } from "node:inspector";

const sources = new URL("../../src/", import.meta.url).href;

export class Coverage {
  readonly #session = new Session();

  constructor() {
    this.#session.connect();
    this.#session.post("Profiler.enable");
    this.#session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
    this.take();
  }

  /** Names of the blocks that were reached since the last call. */
  take(): Set<string> {
    const reached = new Set<string>();
    this.#session.post("Profiler.takePreciseCoverage", (error, taken) => {
      if (error !== null) throw error;
      for (const script of taken.result) if (script.url.startsWith(sources)) addBlocks(script, reached);
    });
    return reached;
  }

  close(): void {
    this.#session.post("Profiler.stopPreciseCoverage");
    this.#session.disconnect();
  }
}

function addBlocks(script: Profiler.ScriptCoverage, reached: Set<string>): void {
  for (const { ranges } of script.functions) {
    for (const { startOffset, endOffset, count } of ranges) {
      if (count > 0) reached.add(`${script.scriptId}:${startOffset}-${endOffset}`);
    }
  }
}
