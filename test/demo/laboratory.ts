/**
 * Everything that the demonstration makes, in one place, so that it can be taken away again however the demonstration
 * ends: a directory, processes, one claim, a write load, objects below a prefix of its own in the store.
 * `close` never fails because of something that is gone already, and tries everything before it throws.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { systemRandom } from "../../src/base/system-random.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { Claim } from "./claim.ts";
import { openDemoStore, removeStoredKeys } from "./demo-store.ts";
import { release } from "./kernel-view.ts";
import { DemoNode, type ProcessSettings, ProgramProcess } from "./processes.ts";
import type { WriteLoad } from "./write-load-process.ts";

const orderlyEndMs = 45_000;

export class Laboratory {
  readonly directory: string;
  readonly settings: ProcessSettings;
  readonly controller: ProgramProcess;
  readonly nodes: readonly [DemoNode, DemoNode];
  readonly claim: Claim;
  readonly store: ObjectStore;
  /** Set while one runs. */
  load: WriteLoad | undefined;
  #isInterrupted = false;

  private constructor(directory: string, settings: ProcessSettings) {
    const run = systemRandom.bytes(4).toString("hex");
    const controllerSocket = join(directory, "controller.sock");
    this.directory = directory;
    this.settings = settings;
    this.controller = new ProgramProcess(settings, {
      name: "controller",
      command: "controller",
      flags: [`--csi-socket=${controllerSocket}`],
      readyMessage: "the controller is ready",
    });
    this.nodes = [
      new DemoNode(settings, `demo-${run}-a`, join(directory, "node-a")),
      new DemoNode(settings, `demo-${run}-b`, join(directory, "node-b")),
    ];
    this.claim = new Claim(`demo-${run}`, controllerSocket);
    this.store = openDemoStore(settings.storeUrl);
  }

  /** `storeUrl` undefined: a directory of its own. Logs go to `logDirectory`, which is left alone at the end. */
  static async make(options: { storeUrl: string | undefined; logDirectory: string }): Promise<Laboratory> {
    const directory = await mkdtemp(join(tmpdir(), "s3block-demo-"));
    const own = join(directory, "store");
    if (options.storeUrl === undefined) await mkdir(own);
    const storeUrl = options.storeUrl ?? pathToFileURL(own).href;
    return new Laboratory(directory, { storeUrl, logDirectory: options.logDirectory });
  }

  get processes(): ProgramProcess[] {
    return [this.controller, ...this.nodes.flatMap(({ server, node }) => [server, node])];
  }

  get nodeIds(): string[] {
    return this.nodes.map(({ id }) => id);
  }

  /** Makes `check` throw from now on. */
  interrupt(): void {
    this.#isInterrupted = true;
    this.load?.kill();
  }

  /** Throws where somebody wants the demonstration to end. For loops that take long. */
  readonly check = (): void => {
    if (this.#isInterrupted) throw new Error("interrupted");
  };

  /** Takes everything away; throws with what could not be. */
  async close(): Promise<void> {
    const failures: unknown[] = [];
    const attempt = async (work: () => Promise<unknown>): Promise<void> => {
      await work().catch((error: unknown) => failures.push(error));
    };
    this.load?.kill();
    this.load = undefined;
    if (this.claim.volumeId !== "") await Promise.race([attempt(() => this.#endClaim()), sleep(orderlyEndMs)]);
    this.claim.close();
    await attempt(() => release(this.directory, this.nodeIds));
    await Promise.all(this.nodes.map((node) => attempt(() => node.stop())));
    await attempt(() => this.controller.stop("SIGTERM"));
    await attempt(() => removeStoredKeys(this.store));
    await attempt(() => this.store.close());
    await attempt(() => rm(this.directory, { recursive: true, force: true }));
    if (failures.length > 0)
      throw new AggregateError(failures, `not everything could be taken away: ${failures.join("; ")}`);
  }

  /** The way back of a claim, from wherever it stands: every call of it may be made again. */
  async #endClaim(): Promise<void> {
    const { claim } = this;
    claim.deadlineMs = orderlyEndMs / 3;
    if (claim.node !== undefined) {
      for (const process of [claim.node.server, claim.node.node, this.controller]) {
        if (!process.isRunning) await process.start();
      }
      await claim.nodeUnpublish();
      await claim.nodeUnstage();
      await claim.controllerUnpublish();
    }
    await claim.delete();
  }
}
