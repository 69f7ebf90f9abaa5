/**
 * Remembers in the state directory that this node has probed its store and found it to keep conditional writes, so
 * that volumes it owned before a restart are served again without waiting for the next probe.
 *
 * Why that is safe: a probe says what a store did at one moment, and every opened volume relies on that word for as
 * long as its process lives, months perhaps. A restart changes nothing about the store. The word is kept for the same
 * URL, endpoints and addressing only; it is asked for again at every start (a standby that goes on is no start, see
 * server.ts), behind the volumes that are resumed, and before any other volume is taken; and it is forgotten before a
 * process ends because the store failed the probe.
 * Losing the file costs the next start the wait for its probe, and nothing else.
 */
import { createHash } from "node:crypto";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { StoreSettings } from "../store/open-store.ts";

/** Raise it when the probe looks at more than before: what was trusted by less is asked again first. */
const probeVersion = 1;
const fileName = "trusted-store";

export class TrustedStore {
  readonly #path: string;
  readonly #word: string;
  readonly #log: Log;

  constructor(options: { stateDir: string; settings: StoreSettings; log: Log }) {
    const { url, endpoints, region, pathStyle, caFile } = options.settings;
    const way = JSON.stringify([probeVersion, url, endpoints, region, pathStyle, caFile]);
    this.#path = join(options.stateDir, fileName);
    this.#word = `${createHash("sha256").update(way).digest("hex")}\n`;
    this.#log = options.log;
  }

  /** True where an earlier process of this node has found this very store good. */
  async isTrusted(): Promise<boolean> {
    const word = await readFile(this.#path, "utf8").catch(() => "");
    return word === this.#word;
  }

  async trust(): Promise<void> {
    if (await this.isTrusted()) return;
    const fresh = `${this.#path}.fresh`;
    try {
      await writeFile(fresh, this.#word, { mode: 0o600 });
      await rename(fresh, this.#path);
    } catch (error) {
      this.#log.warn("the next start waits for the probe of the store: that it is good could not be kept", {
        operation: "start",
        error: describe(error),
      });
    }
  }

  async distrust(): Promise<void> {
    await rm(this.#path, { force: true });
  }
}
