/** Mutants of the NBD transmission and of what stands between it and the volume. */
import type { Mutant } from "../mutant.ts";

export const nbdMutants: readonly Mutant[] = [
  {
    name: "fua-flag-ignored",
    file: "src/nbd/transmission.ts",
    find: "const fua = (header.flags & COMMAND_FLAG_FUA) !== 0;",
    replace: "const fua = (header.flags & COMMAND_FLAG_FUA) > 1;",
    why: "a client's FUA never reaches the volume",
  },
  {
    name: "flush-not-forwarded",
    file: "src/nbd/transmission.ts",
    find: "if (header.type === COMMAND_FLUSH) return this.#device.flush();",
    replace: "if (header.type === COMMAND_FLUSH) return undefined;",
    why: "a client's flush is answered and nothing is flushed",
  },
  {
    name: "answered-before-completion",
    file: "src/nbd/transmission.ts",
    find: "    let borrowed: Slab | undefined;\n",
    replace:
      "    if (payloadBytes === 0) {\n      result.catch(() => undefined);\n      return this.#reply(0);\n    }\n" +
      "    let borrowed: Slab | undefined;\n",
    why: "flushes and trims are answered before the volume has completed them",
  },
  {
    name: "write-answered-before-completion",
    file: "src/nbd/transmission.ts",
    find: "    let borrowed: Slab | undefined;\n    if (payloadBytes > 0) {",
    replace:
      "    let borrowed: Slab | undefined;\n" +
      "    if (payloadBytes > 0) {\n      result.catch(() => undefined);\n      this.#window.slab.retain();\n      return this.#reply(0);\n    }\n" +
      "    if (payloadBytes > 0) {",
    why: "writes that must wait (FUA, a full journal) are answered before the volume has them",
  },
  {
    name: "payload-given-back-early",
    file: "src/nbd/transmission.ts",
    find: "      borrowed = this.#window.slab;\n      borrowed.retain();",
    replace: "      borrowed = undefined;",
    why: "a write that waits for room is made of the bytes of a later request",
  },
  {
    name: "errors-answered-as-success",
    file: "src/nbd/transmission.ts",
    find: "const errno = error === undefined ? 0 : this.#errnoOf(error);",
    replace: "const errno = error === undefined || this.#errnoOf(error) > 0 ? 0 : 1;",
    why: "a flush that a fence refused is acknowledged to the client",
  },
  {
    name: "read-answered-before-data",
    file: "src/nbd/transmission.ts",
    find: "if (result !== undefined) return this.#wait(result, slab, start, lengthBytes);",
    replace: "if (result !== undefined) {\n      result.catch(() => undefined);\n    }",
    why: "a read that must fetch from S3 is answered with what the buffer held",
  },
  {
    name: "drain-does-not-wait",
    file: "src/nbd/transmission.ts",
    find: "    if (this.#inFlight > 0) return;\n    if (this.#disconnected",
    replace: "    if (this.#disconnected",
    why: "a late first copy of a request takes effect after the resent one was answered and written over",
    test: {
      file: "test/nbd/transmission.test.ts",
      name: "DISC and a closed client: what is in flight is answered, then the connection ends",
    },
  },
  {
    name: "reconnect-does-not-drain",
    file: "src/attachment/attachment.ts",
    find: "    await this.#connection?.drain();\n    const early = await this.#early;",
    replace: "    const early = await this.#early;",
    why: "a late first copy of a request takes effect after the resent one was answered and written over",
    test: {
      file: "test/attachment/registry.test.ts",
      name: "a renewal that fails is tried again, and each failed connection is closed before the next",
    },
  },
  {
    name: "late-reply-to-another-request",
    file: "src/nbd/transmission.ts",
    find: "      this.#replyLate(pending, errno);",
    replace: "      this.#reply(errno);",
    why: "a request that waited is never answered, and another one twice",
  },
  {
    name: "fenced-volume-not-let-go",
    file: "src/attachment/attachment.ts",
    find: "so that it can be attached anew.\n      await this.#volume.close();",
    replace: "so that it can be attached anew.",
    why: "a volume that was fenced while it was detached cannot be attached on that node again",
    test: {
      file: "test/attachment/registry.test.ts",
      name: "a volume that is fenced while it is being closed is let go of all the same",
    },
  },
];
