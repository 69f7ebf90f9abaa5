/** Mutants of reading: overlay, cache, checksums, and what is believed of the store. */
import type { Mutant } from "../mutant.ts";

export const readingMutants: readonly Mutant[] = [
  {
    name: "read-ignores-overlay",
    file: "src/volume/read-path.ts",
    find: "      const { foundBlocks, foundValue } = overlay;\n",
    replace: "      const { foundBlocks } = overlay;\n      const foundValue = Math.min(0, overlay.foundValue);\n",
    why: "a block is read as S3 holds it, though a newer version was acknowledged",
  },
  {
    name: "zeroed-block-reads-as-before",
    file: "src/volume/read-path.ts",
    find: "else if (foundValue < 0) target.fill(0, at, at + foundBlocks * BLOCK_BYTES);",
    replace:
      "else if (foundValue < 0 && this.#map.isHole(Math.floor(lba / SHARD_BLOCKS))) target.fill(0, at, at + foundBlocks * BLOCK_BYTES);",
    why: "trimmed data is read until the trim is uploaded",
  },
  {
    name: "cached-frame-not-verified",
    file: "src/volume/read-path.ts",
    find: "    if (!isIntactRawFrame(frames, from, lba + index, seed)) return false;",
    replace: "    if (seed < 0) return false;",
    why: "rot in the cache or in S3 is served",
  },
  {
    name: "single-cached-frame-not-verified",
    file: "src/volume/read-path.ts",
    find: "if (!isIntactRawFrame(oneFrame, 0, lba, seed, oneSealed)) return false;",
    replace: "if (seed < 0) return false;",
    why: "rot in the cache is served to reads of one block",
  },
  {
    name: "second-reading-not-verified",
    file: "src/volume/read-path.ts",
    find: "const isRight = (frames: Buffer): boolean => copyFrames(frames, segment.seed, lba, blocks, target, at);",
    replace:
      "const isRight = (frames: Buffer): boolean =>\n" +
      "      copyFrames(frames, segment.seed, lba, blocks, target, at) || frames.length > 0;",
    why: "a block that is rotten in S3 is answered with whatever the buffer held",
    test: { file: "test/volume/volume.test.ts", name: "rot in the store fails that range alone, and is reported" },
  },
  {
    name: "no-second-reading",
    file: "src/volume/read-path.ts",
    find: "      if (!intact) {\n        return this.#refetch",
    replace:
      "      if (!intact) {\n" +
      '        if (count > 0) throw new OperationError("corrupt", "the cache is rotten");\n' +
      "        return this.#refetch",
    why: "rot in the local cache fails reads that S3 could answer",
  },
  {
    name: "frame-not-bound-to-segment",
    file: "src/volume/format/frame.ts",
    find: "  return crc32(identity);\n",
    replace: "  return crc32(identity.subarray(0, 8));\n",
    why: "a frame of an older segment in a stale or swapped part of the cache is served",
    test: {
      file: "test/volume/format/frame.test.ts",
      name: "a frame is intact only in its own place, for its own block, with every byte as it was",
    },
  },
  {
    name: "short-body-accepted",
    file: "src/store/s3-transfer.ts",
    find: "else if (received === target.length) resolve(target);",
    replace: "else if (received <= target.length) resolve(target.subarray(0, received));",
    why: "a body that broke off counts as the whole object",
    test: { file: "test/store/s3.test.ts", name: "a body of unannounced length must still be as long as its range" },
  },
  {
    name: "another-range-accepted",
    file: "src/store/s3.ts",
    find: "if (totalBytes !== undefined && end !== undefined && first === range.offset) {",
    replace: "if (totalBytes !== undefined && end !== undefined) {",
    why: "a store that ignores ranges has the wrong bytes believed",
    test: {
      file: "test/store/s3.test.ts",
      name: "a range that is shorter, longer, elsewhere or whole is corrupt, never an answer",
    },
  },
  {
    name: "precondition-failure-ignored",
    file: "src/store/s3.ts",
    find: '        if (!saysExists(error)) throw error;\n        return "exists";',
    replace: '        if (!saysExists(error)) throw error;\n        return "created";',
    why: "412 counts as success: two owners",
    test: { file: "test/store/s3.test.ts", name: "412, and 304 of old servers, mean that the object exists" },
  },
  {
    name: "request-conflict-taken-for-exists",
    file: "src/store/s3-errors.ts",
    find: "return status === 412 || status === 304 ||",
    replace: "return status === 412 || status === 409 || status === 304 ||",
    why: "409 says that nobody has won yet: taking it for a verdict fences the only writer",
    test: {
      file: "test/store/s3.test.ts",
      name: "a refusal says what is wrong and what to do, and repeats nothing the server wrote",
    },
  },
  {
    name: "impatient-while-serving",
    file: "src/store/patient.ts",
    find: "if (!this.#isServing || options?.once === true",
    replace: "if (this.#isServing || options?.once === true",
    why: "revoked credentials turn into I/O errors of a mounted file system",
  },
  {
    name: "unavailable-not-retried",
    file: "src/store/retrying.ts",
    find: "if (options.once === true || attempts >= (limits.maxAttempts ?? Infinity) || isLate) throw error;",
    replace: "if (options.once === true || attempts >= (limits.maxAttempts ?? 3) || isLate) throw error;",
    why: "an outage of the store turns into errors at attach",
    test: {
      file: "test/store/retrying.test.ts",
      name: "for any faults and any number of racing writers exactly one put is told that it created the object",
    },
  },
];
