/** Mutants of the map, its application and the checkpoints. */
import type { Mutant } from "../mutant.ts";

export const mapMutants: readonly Mutant[] = [
  {
    name: "checkpoint-covers-one-too-many",
    file: "src/volume/volume.ts",
    find: "return { sequence: appliedSequence as SegmentSeq,",
    replace: "return { sequence: (appliedSequence + 1) as SegmentSeq,",
    why: "a recovery leaves out the first segment behind the checkpoint",
  },
  {
    name: "root-before-pages",
    file: "src/volume/checkpointer.ts",
    find: "      const bytes = await this.#writePages(dirty);\n      await this.#writeRoot(position);",
    replace: "      await this.#writeRoot(position);\n      const bytes = await this.#writePages(dirty);",
    why: "a checkpoint names the old pages and covers what only the new ones hold",
  },
  {
    name: "last-page-left-out",
    file: "src/volume/checkpointer.ts",
    find: "    if (pages.length > 0) await this.#writeMapObject(pages);",
    replace: "    if (pages.length > 0) await this.#writeMapObject(pages.slice(0, Math.max(1, pages.length - 1)));",
    why: "of the changed shards the last one is not in the checkpoint",
  },
  {
    name: "dirty-shards-evicted",
    file: "src/volume/block-map.ts",
    find: "if (shard.dirty) dirtyBytes += this.#accounted.get(shard.index) ?? 0;\n      else if",
    replace: "if",
    why: "a changed part of the map is dropped from memory before a checkpoint has it: older data is read",
  },
  {
    name: "shards-being-written-evicted",
    file: "src/volume/block-map.ts",
    find: "shard.index !== keep && !shard.writing",
    replace: "shard.index !== keep",
    why: "a part of the map is dropped while its page is on its way, and read back from the old page",
  },
  {
    name: "awaited-shards-evicted",
    file: "src/volume/block-map.ts",
    find: " && !this.#awaited.has(shard.index)",
    replace: "",
    why: "reads of two parts of the map, with memory for one, load them in turn for ever and stop the whole process",
    test: {
      file: "test/volume/block-map.test.ts",
      name: "two who wait for different shards, with room for one, both get theirs",
    },
  },
  {
    name: "page-overwrites-newer-shard",
    file: "src/volume/block-map.ts",
    find: ".then((shard) => this.#shards.get(index) ?? this.#keep(shard))",
    replace: ".then((shard) => this.#keep(shard))",
    why: "a page that comes late replaces a shard that was cleared meanwhile: trimmed data comes back",
    test: {
      file: "test/volume/block-map.test.ts",
      name: "a shard that is cleared while its page is on its way stays cleared",
    },
  },
  {
    name: "empty-shard-keeps-page",
    file: "src/volume/checkpointer.ts",
    find: "        map.setPage(shard.index, undefined);\n",
    replace: "",
    why: "a part of the volume that was trimmed whole comes back after a restart",
  },
  {
    name: "shard-dropped-while-it-loads",
    file: "src/volume/map-apply.ts",
    find: "await map.whileLoaded(shardIndex, (loaded) => place(loaded, block, count, low, high, source));",
    replace: "place(await map.load(shardIndex), block, count, low, high, source);",
    why: "a segment is applied to a part of the map that was dropped from memory at that moment: its writes are lost",
  },
  {
    name: "zeroes-not-applied",
    file: "src/volume/map-apply.ts",
    find: "if (word0Low === 0) shard.set(block, count, 0, 0);",
    replace: "if (word0Low === 0) return shard;",
    why: "a trim of stored data has no effect once it is uploaded",
  },
  {
    name: "extent-over-shard-border",
    file: "src/volume/map-apply.ts",
    find: "word1 = kind === EXTENT_ZERO ? 0 : advanceWord1(word0Low, word1, count);",
    replace: "word1 = kind === EXTENT_ZERO ? 0 : word1;",
    why: "a write over the border of two shards maps its second part to the first one's data",
  },
  {
    name: "extents-before-last-alone",
    file: "src/volume/map-apply.ts",
    find: "  for (let index = 0; index < extents.count; index += 1) {\n    if (index % YIELD",
    replace: "  for (let index = 0; index < Math.max(1, extents.count - 1); index += 1) {\n    if (index % YIELD",
    why: "the last extent of a segment is not entered into the map",
  },
  {
    name: "run-cut-forgets-offset",
    file: "src/volume/dirty-extents.ts",
    find: "          this.#add(end, stop - end, advance(value, end - start));\n",
    replace: "          this.#add(end, stop - end, value);\n",
    why: "a write in the middle of another shifts what stands behind it",
  },
];
