/**
 * S3 as one process reaches it over a network that fails: an ObjectStore whose requests take time, and meet the faults
 * that the world has switched on. What has left a process goes on without it: a put may take effect long after its
 * sender was told of a failure, or has died.
 *
 * All processes share one StoreService: the truth (a MemoryStore that keeps its contract to the letter), outages,
 * partitions, and objects that have rotted.
 */
import type { Clock } from "../../src/base/clock.ts";
import { OperationError } from "../../src/base/errors.ts";
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ByteRange, ListOptions, ListPage, ObjectStore, RequestOptions } from "../../src/store/object-store.ts";
import type { Coverage } from "./coverage.ts";
import type { SimProcess } from "./sim-process.ts";
import type { StoreFaults } from "./swarm.ts";
import type { Trace } from "./trace.ts";

type RequestKind = "put" | "get" | "list" | "delete";

export interface StoreServiceParts {
  clock: Clock;
  random: SeededRandom;
  coverage: Coverage;
  trace: Trace;
  faults: StoreFaults;
  /** A put has created an object. */
  created: (key: string, body: Buffer, process: SimProcess) => void;
}

/** A client gives up a request that is not answered for so long. */
const TIMEOUT_MS = 10_000;

export class StoreService {
  readonly truth: MemoryStore;
  readonly parts: StoreServiceParts;
  /** Nobody is answered. */
  out = false;
  /** Sites that do not reach the store. */
  readonly partitioned = new Set<string>();
  /** Off for the end of a run: requests are only slow. */
  faultsOn = true;
  /** Sites whose requests are refused for a reason that only people can mend. */
  readonly refusing = new Map<string, "invalid" | "not-found">();
  /** What befalls a process at one of its next requests, by the process's name. */
  readonly ambushes = new Map<string, { left: number; spring: () => void }>();
  /** Every key that was created, in order. */
  readonly keys: string[] = [];
  /** Bits that are wrong for ever, by key. */
  readonly rotten = new Map<string, number[]>();
  /** Bodies that were served damaged or cut, by site. */
  readonly damagedBodies = new Map<string, number>();

  constructor(parts: StoreServiceParts) {
    this.parts = parts;
    this.truth = new MemoryStore({ clock: parts.clock });
  }

  /** The store as `process` on `site` reaches it. */
  reach(process: SimProcess, site: string): ObjectStore {
    return new SimStore(this, process, site);
  }

  noteDamage(site: string): void {
    this.damagedBodies.set(site, (this.damagedBodies.get(site) ?? 0) + 1);
  }

  /** What an object's bytes from `offset` on look like on the rotten medium. */
  applyRot(key: string, offset: number, bytes: Buffer): boolean {
    let changed = false;
    for (const bit of this.rotten.get(key) ?? []) {
      const at = (bit >>> 3) - offset;
      if (at < 0 || at >= bytes.length) continue;
      bytes[at] ^= 1 << (bit & 7);
      changed = true;
    }
    return changed;
  }
}

/** How one request fares. */
interface Fate {
  /** Until the store has it, and until the answer is back. */
  travelMs: number;
  returnMs: number;
  fault: "none" | "refused" | "conflict" | "reset-before" | "reset-after" | "late" | "timeout" | "short-body" | "rot";
  lateMs: number;
}

class SimStore implements ObjectStore {
  readonly location = "memory:";
  readonly #service: StoreService;
  readonly #process: SimProcess;
  readonly #site: string;

  constructor(service: StoreService, process: SimProcess, site: string) {
    this.#service = service;
    this.#process = process;
    this.#site = site;
  }

  putIfAbsent(key: string, body: readonly Uint8Array[], options: RequestOptions = {}): Promise<"created" | "exists"> {
    // The body is the caller's again as soon as the call has ended, and a late put needs it then.
    const copy = Buffer.concat(body);
    const { truth, parts } = this.#service;
    return this.#request("put", key, options, async () => {
      const outcome = await truth.putIfAbsent(key, [copy]);
      if (outcome === "created") {
        this.#service.keys.push(key);
        parts.created(key, copy, this.#process);
      }
      return outcome;
    });
  }

  get(key: string, options: RequestOptions = {}): Promise<Buffer | undefined> {
    const { truth } = this.#service;
    return this.#request(
      "get",
      key,
      options,
      () => truth.get(key),
      (body) => body,
    );
  }

  getRange(
    key: string,
    range: ByteRange,
    options: RequestOptions = {},
  ): Promise<{ bytes: Buffer; totalBytes: number } | undefined> {
    const { truth } = this.#service;
    return this.#request(
      "get",
      key,
      options,
      async () => {
        const body = truth.view(key);
        if (body === undefined) return undefined;
        // Memory of its own, because the reader frees it: who looks at it afterwards is found out.
        const part = body.subarray(range.offset, range.offset + range.length);
        const bytes = Buffer.allocUnsafeSlow(part.length);
        part.copy(bytes);
        return { bytes, totalBytes: body.length };
      },
      (answer) => answer?.bytes,
      range.offset,
    );
  }

  list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    const { signal: _signal, ...rest } = options;
    const limit = this.#service.parts.faults.shortPages ? Math.min(3, options.limit ?? 3) : options.limit;
    const paged = limit === undefined ? rest : { ...rest, limit };
    return this.#request("list", prefix, options, () => this.#service.truth.list(prefix, paged));
  }

  delete(keys: readonly string[], options: RequestOptions = {}): Promise<void> {
    const copy = [...keys];
    return this.#request("delete", copy[0] ?? "", options, () => this.#service.truth.delete(copy));
  }

  async close(): Promise<void> {}

  #request<T>(
    kind: RequestKind,
    key: string,
    options: RequestOptions,
    take: (fate: Fate) => Promise<T>,
    bodyOf?: (answer: T) => Buffer | undefined,
    offset = 0,
  ): Promise<T> {
    const service = this.#service;
    const { clock, coverage, trace } = service.parts;
    const fate = this.#fate(kind);
    const refusal = service.refusing.get(this.#site);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const { signal } = options;
    const giveUp = (): void => reject(lost("given up", kind, key));
    if (signal?.aborted === true) {
      giveUp();
      return promise;
    }
    signal?.addEventListener("abort", giveUp, { once: true });
    const answer = (settle: () => void): void => {
      signal?.removeEventListener("abort", giveUp);
      this.#process.gate(settle);
    };
    const fail = (afterMs: number, error: OperationError): void => {
      clock.after(afterMs, () => answer(() => reject(error)));
    };
    const ambush = service.ambushes.get(this.#process.name);
    if (ambush !== undefined && --ambush.left <= 0) {
      service.ambushes.delete(this.#process.name);
      // Just before or just after the request has left.
      if (service.parts.random.below(2) === 0) clock.after(0, ambush.spring);
      else ambush.spring();
      if (this.#process.dead) return promise;
    }
    if (refusal !== undefined) {
      coverage.add(`store refuses a site: ${refusal}`);
      fail(fate.travelMs, new OperationError(refusal, "simulated: refused", { context: { request: kind, key } }));
      return promise;
    }
    const { fault } = fate;
    if (fault !== "none" && fault !== "short-body" && fault !== "rot") coverage.add(`store ${fault}`);
    if (fault === "timeout") fail(TIMEOUT_MS, lost("time-out", kind, key));
    if (fault === "late") fail(fate.travelMs, lost("reset, and the request goes on", kind, key));
    if (fault === "timeout" && fate.lateMs === 0) return promise;
    if (fault === "refused" || fault === "conflict" || fault === "reset-before") {
      fail(fate.travelMs, lost(fault, kind, key));
      return promise;
    }
    const travelMs = fate.travelMs + fate.lateMs;
    clock.after(travelMs, () => {
      if (!this.#arrives(fate)) {
        if (fault !== "late" && fault !== "timeout") fail(this.#unreachedMs(), lost("no answer", kind, key));
        return;
      }
      const taken = take(fate);
      void taken.then((result) => {
        trace.add(`${this.#process.name} ${kind} ${key} ${fault} ${typeof result === "string" ? result : ""}`);
        if (fault === "timeout" || fault === "late") return;
        if (fault === "reset-after") return fail(fate.returnMs, lost("reset after", kind, key));
        const body = bodyOf?.(result);
        const error = body === undefined ? undefined : this.#spoil(fate, key, offset, body);
        if (error !== undefined) return fail(fate.returnMs, error);
        clock.after(fate.returnMs, () => answer(() => resolve(result)));
      });
    });
    return promise;
  }

  /** Whether a request that was sent reaches the store. What a dead process was still sending may be cut off. */
  #arrives(fate: Fate): boolean {
    const service = this.#service;
    const { random, coverage } = service.parts;
    const sent = fate.lateMs > 0;
    if (!sent && (service.out || service.partitioned.has(this.#site))) return false;
    if (this.#process.dead) {
      if (!sent && random.below(3) === 0) return false;
      coverage.add("store request of a dead process");
    } else if (this.#process.frozen) coverage.add("store request of a frozen process");
    return true;
  }

  /** How long it takes to notice that the store does not answer: at once, or a time-out. */
  #unreachedMs(): number {
    const { random, coverage } = this.#service.parts;
    coverage.add(this.#service.out ? "store request in an outage" : "store request over a partition");
    return random.below(2) === 0 ? random.below(20) : TIMEOUT_MS;
  }

  /** Damages the body on its way; answers an error where the client notices at once. */
  #spoil(fate: Fate, key: string, offset: number, body: Buffer): OperationError | undefined {
    const service = this.#service;
    const { random, coverage } = service.parts;
    if (body.length === 0) return undefined;
    if (service.applyRot(key, offset, body)) {
      coverage.add("store served a rotten object");
      service.noteDamage(this.#site);
    }
    if (fate.fault === "short-body") {
      coverage.add("store short-body");
      service.noteDamage(this.#site);
      return new OperationError("corrupt", "simulated: the body broke off", { context: { key } });
    }
    if (fate.fault !== "rot") return undefined;
    coverage.add("store rotten body");
    service.noteDamage(this.#site);
    const bit = random.below(body.length * 8);
    body[bit >>> 3] ^= 1 << (bit & 7);
    return undefined;
  }

  #fate(kind: RequestKind): Fate {
    const { random, faults, coverage } = this.#service.parts;
    const fate: Fate = { travelMs: random.fraction() * faults.latencyMs, returnMs: 0, fault: "none", lateMs: 0 };
    fate.returnMs = random.fraction() * faults.latencyMs;
    if (!this.#service.faultsOn) return fate;
    if (random.fraction() < faults.tail) {
      coverage.add("store slow request");
      fate.travelMs += random.fraction() * 3000;
      fate.returnMs += random.fraction() * 3000;
    }
    const changes = kind === "put" || kind === "delete";
    const draw = { left: random.fraction() };
    const hit = (rate: number): boolean => (draw.left -= rate) < 0;
    if (hit(faults.refused)) fate.fault = "refused";
    else if (hit(faults.conflict)) fate.fault = kind === "put" ? "conflict" : "none";
    else if (hit(faults.resetBefore)) fate.fault = "reset-before";
    else if (hit(faults.resetAfter)) fate.fault = "reset-after";
    else if (hit(faults.late)) fate.fault = changes ? "late" : "none";
    else if (hit(faults.timeout)) fate.fault = "timeout";
    else if (hit(faults.shortBody)) fate.fault = kind === "get" ? "short-body" : "none";
    else if (hit(faults.rot)) fate.fault = kind === "get" ? "rot" : "none";
    if (fate.fault === "late" || (fate.fault === "timeout" && changes && random.below(2) === 0)) {
      // From a millisecond to ten minutes, each order of magnitude as likely.
      fate.lateMs = Math.exp(random.fraction() * Math.log(600_000));
    }
    return fate;
  }
}

function lost(what: string, kind: RequestKind, key: string): OperationError {
  return new OperationError("unavailable", `simulated: ${what}`, { context: { request: kind, key } });
}
