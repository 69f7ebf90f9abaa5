/** Mutants of the write path: volume, generations, segment writer, overlay. */
import type { Mutant } from "../mutant.ts";

export const writePathMutants: readonly Mutant[] = [
  {
    name: "flush-answers-before-upload",
    file: "src/volume/segment-writer.ts",
    find: "if (sequence <= this.#durableSequence) return undefined;",
    replace: "if (sequence <= this.#sealedSequence) return undefined;",
    why: "a flush is acknowledged once its segment is on its way: the node's death loses it",
  },
  {
    name: "flush-leaves-out-open-generation",
    file: "src/volume/segment-writer.ts",
    find: "    if (this.#active !== undefined) {\n      sequence += 1;",
    replace: "    if (this.#active !== undefined) {",
    why: "a flush is acknowledged when what was sealed before is in S3: the newest writes are not",
  },
  {
    name: "flush-skips-lower-sequences",
    file: "src/volume/segment-writer.ts",
    find: "if (!generation.durable) break;",
    replace: "if (!generation.durable) continue;",
    why: "a flush is acknowledged while a lower segment is missing: behind the gap nobody reads",
  },
  {
    name: "durable-before-put",
    file: "src/volume/segment-writer.ts",
    find: "      await this.#put(generation, object);\n      generation.durable = true;",
    replace: "      generation.durable = true;\n      this.#advance();\n      await this.#put(generation, object);",
    why: "a segment counts as stored before S3 has answered",
  },
  {
    name: "segment-put-ignores-412",
    file: "src/volume/segment-writer.ts",
    find: 'if ((await store.putIfAbsent(key, [object], { signal })) === "created") return;',
    replace: "await store.putIfAbsent(key, [object], { signal });\n    if (generation.sequence > 0) return;",
    why: "a former owner goes on acknowledging flushes whose segments met the fence",
  },
  {
    name: "segments-applied-out-of-order",
    file: "src/volume/segment-writer.ts",
    find: "        const generation = this.#generations[0];\n",
    replace:
      "        const newest = this.#generations.findLast((other) => other.sequence <= this.#durableSequence);\n" +
      "        if (newest !== undefined) {\n" +
      "          this.#generations = [newest, ...this.#generations.filter((other) => other !== newest)];\n" +
      "        }\n" +
      "        const generation = this.#generations[0];\n",
    why: "an older segment is applied to the map over a newer one: old data comes back",
  },
  {
    name: "journal-freed-before-upload",
    file: "src/volume/segment-writer.ts",
    find: "    generation.dropWrites();\n",
    replace: "    generation.dropWrites();\n    journal.release(generation.endPosition);\n",
    why: "the journal is freed while its segment is on its way: a crash loses acknowledged writes",
  },
  {
    name: "overlay-drops-newer-writes",
    file: "src/volume/segment-writer.ts",
    find: "extents.blockCount[index], generation.endPosition);",
    replace: "extents.blockCount[index], Infinity);",
    why: "a block written again while its segment was on its way reads as the older version",
  },
  {
    name: "overlay-drops-next-zeroes",
    file: "src/volume/dirty-extents.ts",
    find: "      if (stop <= lba || Math.abs(value) >= before) {",
    replace: "      if (stop <= lba || Math.abs(value) > before) {",
    why: "a trim right behind a generation's last record is forgotten when the segment is applied",
    test: {
      file: "test/volume/dirty-extents.test.ts",
      name: "random inserts and removals equal a plain array, seed 1",
    },
  },
  {
    name: "applied-journal-end-too-high",
    file: "src/volume/segment-writer.ts",
    find: "this.appliedJournalEnd = generation.journalEnd;",
    replace: "this.appliedJournalEnd = journal.sequence;",
    why: "a checkpoint says that S3 holds journal records which it does not: a restart does not replay them",
  },
  {
    name: "segment-journal-end-too-high",
    file: "src/volume/segment-writer.ts",
    find: "journalEnd: generation.journalEnd,",
    replace: "journalEnd: journal.sequence,",
    why: "a segment says that S3 holds journal records which it does not: a restart does not replay them",
  },
  {
    name: "map-updated-before-durable",
    file: "src/volume/segment-writer.ts",
    find: "this.appliedSequence = sequence;",
    replace: "this.appliedSequence = this.#sealedSequence;",
    why: "a checkpoint covers segments that S3 does not hold yet: a recovery never applies them",
  },
  {
    name: "fua-forgotten-on-write",
    file: "src/volume/volume.ts",
    find: "    this.#append(lba, blocks, source, 0);\n    if (!this.#batching) this.#journal.commit();\n    return fua ? this.flush() : undefined;",
    replace:
      "    this.#append(lba, blocks, source, 0);\n    if (!this.#batching) this.#journal.commit();\n    return undefined;",
    why: "a write with FUA is answered before it is durable",
  },
  {
    name: "fua-forgotten-on-zeroes",
    file: "src/volume/volume.ts",
    find: "    this.#append(lba, blocks, undefined, 0);\n    if (!this.#batching) this.#journal.commit();\n    return fua ? this.flush() : undefined;",
    replace:
      "    this.#append(lba, blocks, undefined, 0);\n    if (!this.#batching) this.#journal.commit();\n    return undefined;",
    why: "zeroes or a trim with FUA are answered before they are durable",
  },
  {
    name: "fua-forgotten-under-pressure",
    file: "src/volume/volume.ts",
    find: "    if (fua) await this.flush();\n",
    replace: "",
    why: "a write with FUA that had to wait for room in the journal is answered before it is durable",
  },
  {
    name: "batch-not-written",
    file: "src/volume/volume.ts",
    find: "    this.#batching = false;\n    this.#journal.commit();",
    replace: "    this.#batching = false;",
    why: "writes are answered before the journal's file has them: the death of the process loses them",
  },
  {
    name: "waiting-write-not-written",
    file: "src/volume/volume.ts",
    find: "        this.#append(lba + from, count, source, from * BLOCK_BYTES);\n        this.#journal.commit();\n",
    replace: "        this.#append(lba + from, count, source, from * BLOCK_BYTES);\n",
    why: "a write that had to wait for room is answered before the journal's file has it",
  },
  {
    name: "local-flush-without-sync",
    file: "src/volume/volume.ts",
    find: "return this.#journal.sync()?.catch(() => this.#writer.flush());",
    replace: "return undefined;",
    why: "durability local: a flush is answered though the journal stands in the page cache alone",
  },
  {
    name: "failed-sync-acknowledged",
    file: "src/volume/volume.ts",
    find: "return this.#journal.sync()?.catch(() => this.#writer.flush());",
    replace: "return this.#journal.sync()?.catch(() => undefined);",
    why: "durability local: a flush is acknowledged though the disk failed the sync",
    test: {
      file: "test/volume/volume.test.ts",
      name: "a flush whose sync the local disk fails is answered once S3 holds what it covers",
    },
  },
  {
    name: "trim-forgets-overlay",
    file: "src/volume/volume.ts",
    find: "    if (overlay.foundValue !== 0 || overlay.foundBlocks < blocks) return false;\n",
    replace: "",
    why: "zeroes over data that only the journal holds are dropped: the old data stays",
  },
  {
    name: "trim-looks-at-one-shard",
    file: "src/volume/volume.ts",
    find: "shard <= last; shard += 1) if (!map.isHole(shard)) return false;",
    replace: "shard < last; shard += 1) if (!map.isHole(shard)) return false;",
    why: "zeroes over a range that ends in a written shard are dropped: the old data stays",
  },
  {
    name: "close-without-upload",
    file: "src/volume/volume.ts",
    find: '    if (this.#state === "open") {\n      await this.#writer.flush();\n',
    replace: '    if (this.#state === "open") {\n',
    why: "a detach removes the journal before its writes are in S3",
  },
  {
    name: "fenced-volume-goes-on",
    file: "src/volume/volume.ts",
    find: "    this.#failure = error;\n    this.#state",
    replace: '    if (error.kind === "fenced") return;\n    this.#failure = error;\n    this.#state',
    why: "a former owner that met the fence goes on answering as if nothing had happened",
  },
  {
    name: "segment-leaves-out-zeroes",
    file: "src/volume/generation.ts",
    find: "    const stored = value > 0 ? blocks * RAW_FRAME_BYTES : 0;\n",
    replace: "    const stored = value > 0 ? blocks * RAW_FRAME_BYTES : 0;\n    if (kind === EXTENT_ZERO) return;\n",
    why: "a trim is not in the segment: elsewhere the old data comes back",
  },
  {
    name: "segment-keeps-oldest-version",
    file: "src/volume/generation.ts",
    find: "    for (let index = 0; index < this.writes; index += 1) {\n      newest.insert",
    replace: "    for (let index = this.writes - 1; index >= 0; index -= 1) {\n      newest.insert",
    why: "of two writes to a block in one segment the older one is stored",
  },
  {
    name: "last-frame-dropped",
    file: "src/volume/generation.ts",
    find: "        if (!journal.readFrames(position, lba, count, target, at, false)) {",
    replace:
      "        const isLast = piece === this.#pieceLba.length - 1 && piece > 0 && done + count === this.#pieceBlocks[piece];\n" +
      "        if (!isLast && !journal.readFrames(position, lba, count, target, at, false)) {",
    why: "a segment is stored without its last frames, and its flush acknowledged",
  },
];
