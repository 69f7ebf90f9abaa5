/**
 * What one volume may hold: every write with its version, what was acknowledged, and what was flushed.
 *
 * A line is the volume as one owner's users see it: a base image and the operations since, in the order in which they
 * were issued. Users never write a block while a write of it is unanswered, so the operations of a block are in order;
 * those of different blocks are in order where one was answered before the other was issued.
 *
 * When a volume is opened, its image decides which operations took effect: the largest set that explains it (one that
 * made zeroes of zeroes leaves no trace: nobody can tell). The set must hold what may not be lost, each operation whole,
 * and with each operation all that was answered before it was issued: then the image is the volume as it was at one
 * moment. What is not in the set must never be seen again.
 */
export interface Operation {
  id: number;
  lba: number;
  blocks: number;
  /** What the blocks read as afterwards: its id, or 0 for zeroes. */
  version: number;
  issued: number;
  /** When it was first known to have taken effect: answered, or seen in an image. Infinity before. */
  known: number;
  /** A flush that covers it was acknowledged. */
  flushed: boolean;
  /** It is in S3, whatever becomes of the node. */
  durable: boolean;
  /** It changed nothing that could be seen. */
  vacuous: boolean;
  /** It may have been lost with what was written over it: taken for held, but proof of nothing. */
  unproven: boolean;
  pending: boolean;
  /** When it ceased to be pending: nothing of it takes effect from then on. */
  ended: number;
  /** Decided to have been lost: must never be seen. */
  lost: boolean;
}

/** What may have happened to the opener's own journal since it was the owner. */
export type JournalRisk = "none" | "unsynced" | "all";

export class OracleError extends Error {
  override readonly name = "OracleError";
}

export class Line {
  readonly oracle: Oracle;
  readonly node: string;
  epoch: number;
  /** Version of each block by what is durable for certain; -1 where damage in S3 hides it. */
  readonly base: Int32Array;
  operations: Operation[] = [];
  /** A later owner's image was decided without it. */
  superseded = false;

  constructor(oracle: Oracle, owner: { node: string; epoch: number }, base: Int32Array) {
    const { node, epoch } = owner;
    this.oracle = oracle;
    this.node = node;
    this.epoch = epoch;
    this.base = base;
  }

  /** Puts what is durable and answered into the base. */
  fold(): void {
    if (this.operations.length === 0) return;
    const kept: Operation[] = [];
    const blocked = new Set<number>();
    for (const operation of this.operations) {
      let isFree = operation.durable && !operation.pending;
      for (let at = 0; isFree && at < operation.blocks; at += 1) isFree = !blocked.has(operation.lba + at);
      if (isFree) this.base.fill(operation.version, operation.lba, operation.lba + operation.blocks);
      else {
        kept.push(operation);
        for (let at = 0; at < operation.blocks; at += 1) blocked.add(operation.lba + at);
      }
    }
    this.operations = kept;
  }
}

interface ActiveRead {
  lba: number;
  allowed: Set<number>[];
}

export class Oracle {
  readonly blocks: number;
  readonly durability: "s3" | "local";
  main: Line;
  #now = 0;
  #nextId = 1;
  readonly #reads = new Map<Line, Set<ActiveRead>>();
  /** STARTs in the log: who opened each epoch. */
  readonly starts: { epoch: number; node: string }[] = [];
  /** Epochs whose START came after the volume was marked as deleted: nobody may serve them. */
  readonly startedTooLate = new Set<number>();
  /** Every epoch that was claimed, with what the control plane said at that moment. */
  readonly claims = new Map<number, { publication: number; deleted: boolean }>();
  newestClaim = 0;
  /** The newest record of who may own the volume, and whether it is marked as deleted. */
  publication = 0;
  deleted = false;
  /** The volume is gone. */
  ended = false;
  /** A block that is no zero was durable at some time. */
  everWritten = false;

  constructor(blocks: number, durability: "s3" | "local") {
    this.blocks = blocks;
    this.durability = durability;
    this.main = new Line(this, { node: "", epoch: 0 }, new Int32Array(blocks));
  }

  claimed(epoch: number): void {
    const { publication, deleted } = this;
    this.claims.set(epoch, { publication, deleted });
    this.newestClaim = Math.max(this.newestClaim, epoch);
  }

  /** A line of an owner who has lost the volume before it began: nothing of it may be seen by others. */
  lostLine(node: string, epoch: number, image: Int32Array): Line {
    const line = new Line(this, { node, epoch }, image);
    line.superseded = true;
    return line;
  }

  /** The volume was deleted: nothing that is written from now on may be acknowledged as durable. */
  end(): void {
    this.ended = true;
    this.main.superseded = true;
  }

  started(epoch: number, node: string): void {
    this.starts.push({ epoch, node });
    if (this.deleted) this.startedTooLate.add(epoch);
  }

  /** An operation is issued on `line`: `zero`, or a write of its own version. */
  issue(line: Line, lba: number, blocks: number, zero: boolean): Operation {
    const id = this.#nextId++;
    const operation: Operation = {
      id,
      lba,
      blocks,
      version: zero ? 0 : id,
      issued: ++this.#now,
      known: Infinity,
      flushed: false,
      durable: false,
      vacuous: zero && this.#isZero(line, lba, blocks),
      unproven: false,
      pending: true,
      ended: Infinity,
      lost: line.superseded,
    };
    line.operations.push(operation);
    for (const read of this.#reads.get(line) ?? []) {
      for (let at = 0; at < read.allowed.length; at += 1) {
        if (read.lba + at >= lba && read.lba + at < lba + blocks) read.allowed[at].add(operation.version);
      }
    }
    return operation;
  }

  /** The operation was answered well; `fua`: and is durable by that. */
  answered(line: Line, operation: Operation, fua: boolean): void {
    operation.known = Math.min(operation.known, ++this.#now);
    this.#end(operation);
    // Where there was nothing to zero, nothing was made durable either.
    if (fua && !operation.vacuous) this.#flushed(line, [operation]);
  }

  /** The operation failed, or nobody waits for it any more: it may have taken effect. */
  abandoned(operation: Operation): void {
    this.#end(operation);
  }

  /** Nobody waits for anything on this line any more. */
  abandonAll(line: Line): void {
    for (const operation of line.operations) this.#end(operation);
  }

  #end(operation: Operation): void {
    if (!operation.pending) return;
    operation.pending = false;
    operation.ended = ++this.#now;
  }

  /** A flush is issued: what it covers. */
  beginFlush(line: Line): Operation[] {
    return line.operations.filter((operation) => operation.known !== Infinity);
  }

  endFlush(line: Line, covered: readonly Operation[]): void {
    this.#now += 1;
    this.#flushed(line, covered);
  }

  beginRead(line: Line, lba: number, blocks: number): ActiveRead {
    const allowed = Array.from({ length: blocks }, (_, at) => new Set<number>([line.base[lba + at]]));
    for (const operation of line.operations) {
      const from = Math.max(lba, operation.lba);
      const to = Math.min(lba + blocks, operation.lba + operation.blocks);
      for (let block = from; block < to; block += 1) {
        if (operation.known !== Infinity) allowed[block - lba].clear();
        allowed[block - lba].add(operation.version);
      }
    }
    const read = { lba, allowed };
    let active = this.#reads.get(line);
    if (active === undefined) this.#reads.set(line, (active = new Set()));
    active.add(read);
    return read;
  }

  endRead(line: Line, read: ActiveRead, versions: readonly number[] | undefined): void {
    this.#reads.get(line)?.delete(read);
    for (const [at, version] of (versions ?? []).entries()) {
      if (read.allowed[at].has(version) || read.allowed[at].has(-1)) continue;
      const wanted = [...read.allowed[at]].join(" or ");
      throw new OracleError(`block ${read.lba + at} was read as version ${version}, which had to be ${wanted}`);
    }
  }

  /** Everything acknowledged on `line` is in S3: its owner closed the volume well. */
  closed(line: Line): void {
    for (const operation of line.operations) {
      if (operation.known === Infinity || operation.vacuous) continue;
      if (operation.lost && !this.deleted)
        throw new OracleError(`a former owner closed well, without version ${operation.id} in S3`);
      operation.flushed = true;
      operation.durable = true;
      this.everWritten ||= operation.version !== 0 && !operation.unproven;
    }
    line.fold();
  }

  /**
   * `node` has opened epoch `epoch` and sees `image` (-1: a block that cannot be read because of damage). Decides what
   * took effect, and returns the line that users of this owner go on with.
   */
  opened(node: string, epoch: number, image: Int32Array, risk: JournalRisk): Line {
    const main = this.main;
    const later = this.starts.some((start) => start.epoch > epoch);
    // While it is deleted, its fences and objects go: whoever opens it at that moment has nothing that lasts.
    if (this.deleted || later || epoch < main.epoch) {
      return this.lostLine(node, epoch, image);
    }
    const sameOwner =
      main.node === node && this.starts.every((start) => start.epoch <= main.epoch || start.node === node);
    const mustHold = (operation: Operation): boolean => {
      if (operation.durable) return true;
      if (!sameOwner) return false;
      if (risk === "none") return operation.known !== Infinity;
      return risk === "unsynced" && operation.flushed;
    };
    const held = this.#explain(main, image, mustHold);
    for (const operation of main.operations) {
      if (held.has(operation)) {
        operation.unproven ||= !mustHold(operation) && !isSeen(operation, image);
        // Where damage hides all of it, nobody has seen that it took effect.
        if (isVisible(operation, image)) operation.known = Math.min(operation.known, this.#now);
        if (!sameOwner) operation.durable = true;
      } else if (!operation.pending || !sameOwner) operation.lost = true;
    }
    this.#now += 1;
    return sameOwner ? this.#continueLine(main, epoch, image) : this.#newLine(node, epoch, image);
  }

  #continueLine(main: Line, epoch: number, image: Int32Array): Line {
    main.epoch = epoch;
    main.operations = main.operations.filter((operation) => !operation.lost);
    main.fold();
    // A read that was sent again may see what is left where damage has cost acknowledged writes.
    for (const { lba, allowed } of this.#reads.get(main) ?? []) {
      for (const [at, versions] of allowed.entries()) versions.add(image[lba + at]);
    }
    for (const [block, version] of image.entries()) if (version === -1) main.base[block] = -1;
    return main;
  }

  #newLine(node: string, epoch: number, image: Int32Array): Line {
    this.main.superseded = true;
    for (const operation of this.main.operations) if (operation.pending && !operation.durable) operation.lost = true;
    this.main = new Line(this, { node, epoch }, image);
    return this.main;
  }

  /** The largest set of operations that explains the image; throws where that does not hold what it must. */
  #explain(line: Line, image: Int32Array, mustHold: (operation: Operation) => boolean): Set<Operation> {
    const held = new Set(line.operations);
    // Any operation that does not fit, and all that were issued after it was answered, did not take effect.
    let ceiling = Infinity;
    for (let before = -1; before !== held.size;) {
      before = held.size;
      for (const operation of this.#misfits(line, image, held)) {
        held.delete(operation);
        ceiling = Math.min(ceiling, operation.known);
      }
      for (const operation of held) if (operation.issued > ceiling) held.delete(operation);
    }
    // Zeroes over zeroes hold, whether the moment before them or the one behind them is what is seen.
    for (const operation of line.operations) {
      if (mustHold(operation) && isZeroAnyway(operation, image)) held.add(operation);
    }
    const newest = newestVersions(line, held);
    const wrong = image.findIndex((version, block) => version !== newest[block] && version >= 0 && newest[block] >= 0);
    const missing = line.operations.find((operation) => mustHold(operation) && !held.has(operation));
    if (wrong < 0 && missing === undefined) return held;
    const what = missing === undefined ? `block ${wrong}` : `version ${missing.id} of block ${missing.lba}`;
    const block = missing?.lba ?? wrong;
    throw new OracleError(
      `no moment of history explains the image: ${what} must be held, but block ${block} reads as ${image[block]}`,
    );
  }

  /** Held operations that are the last ones on a block, which does not read as they left it. */
  #misfits(line: Line, image: Int32Array, held: ReadonlySet<Operation>): Set<Operation> {
    const last: (Operation | undefined)[] = Array.from({ length: this.blocks }, () => undefined);
    for (const operation of line.operations) {
      if (held.has(operation)) last.fill(operation, operation.lba, operation.lba + operation.blocks);
    }
    const misfits = new Set<Operation>();
    for (const [block, operation] of last.entries()) {
      if (operation !== undefined && image[block] >= 0 && image[block] !== operation.version) misfits.add(operation);
    }
    return misfits;
  }

  #flushed(line: Line, covered: readonly Operation[]): void {
    const toStore = this.durability === "s3";
    for (const operation of covered) {
      operation.flushed = true;
      if (!toStore) continue;
      // What the former owner of a volume is told that is being deleted makes no difference any more.
      if (operation.lost && !operation.vacuous && !this.deleted) {
        throw new OracleError(`a former owner acknowledged a flush of version ${operation.id}, which S3 does not hold`);
      }
      operation.durable = true;
      this.everWritten ||= operation.version !== 0 && !operation.unproven;
    }
    if (toStore) line.fold();
  }

  /** S3 holds zeroes there, and nothing else is on its way: zeroed since whatever was written. */
  #isZero(line: Line, lba: number, blocks: number): boolean {
    for (let block = lba; block < lba + blocks; block += 1) {
      const touching = line.operations.filter((each) => each.lba <= block && block < each.lba + each.blocks);
      const zeroed = touching.findLast(({ version, durable }) => version === 0 && durable);
      if (zeroed === undefined && line.base[block] !== 0) return false;
      const since = zeroed?.issued ?? 0;
      if (touching.some(({ version, ended }) => version !== 0 && ended > since)) return false;
    }
    return true;
  }
}

function isVisible({ lba, blocks }: Operation, image: Int32Array): boolean {
  return image.subarray(lba, lba + blocks).some((version) => version >= 0);
}

/** It zeroed what reads as zero. */
function isZeroAnyway({ lba, blocks, version }: Operation, image: Int32Array): boolean {
  return version === 0 && image.subarray(lba, lba + blocks).every((seen) => seen <= 0);
}

/** What each block reads as with these operations. */
function newestVersions(line: Line, held: ReadonlySet<Operation>): Int32Array {
  const newest = Int32Array.from(line.base);
  for (const { lba, blocks, version } of held) newest.fill(version, lba, lba + blocks);
  return newest;
}

/** The image shows what it wrote, somewhere. */
function isSeen({ lba, blocks, version }: Operation, image: Int32Array): boolean {
  return image.subarray(lba, lba + blocks).includes(version);
}
