/**
 * What the demonstration says: one line a step, with what it took. Numbers are rounded for people; the checks that
 * decide whether a step went well are made elsewhere, on exact values.
 */

/** Writes "  2.1  what  (0.4 s)": which step, what happened, how long it took. */
export class Report {
  #chapter = 0;
  #line = 0;
  readonly #check: () => void;

  /** `check` is called around every step and throws where the demonstration is to end. */
  constructor(check: () => void) {
    this.#check = check;
  }

  chapter(title: string): void {
    this.#chapter += 1;
    this.#line = 0;
    process.stdout.write(`\n${this.#chapter}. ${title}\n`);
  }

  /** Runs a step and says what its answer says; a step that throws says nothing. */
  async step(work: () => Promise<string>): Promise<void> {
    this.#check();
    const startedMs = performance.now();
    const text = await work();
    this.#check();
    this.say(text, (performance.now() - startedMs) / 1000);
  }

  say(text: string, seconds?: number): void {
    this.#line += 1;
    const took = seconds === undefined ? "" : `  (${formatSeconds(seconds)})`;
    process.stdout.write(`  ${this.#chapter}.${this.#line}  ${text}${took}\n`);
  }
}

export function formatSeconds(seconds: number): string {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 1024 ** 2) return `${(bytes / 1024).toFixed(1)} KiB`;
  if (bytes < 1024 ** 3) return `${(bytes / 1024 ** 2).toFixed(1)} MiB`;
  return `${(bytes / 1024 ** 3).toFixed(2)} GiB`;
}

export function formatCount(count: number): string {
  return count.toString().replaceAll(/\B(?=(\d{3})+$)/g, ",");
}
