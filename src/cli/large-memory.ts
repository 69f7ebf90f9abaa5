/**
 * Large buffers in huge pages. A block of 4 KiB somewhere in 128 MiB stands in a page that the processor has no address of
 * at hand; of pages of 2 MiB it has them all (decision 0115). Without huge pages everything works, and is slower.
 */
import { describe } from "../base/errors.ts";
import type { Log } from "../base/log.ts";

/** Makes buffers, with anything in them, in huge pages as far as the kernel has them: it is asked until it refuses. */
export function inHugePages(preferHugePages: (memory: Buffer) => void, log: Log): (bytes: number) => Buffer {
  let refused = false;
  return (bytes) => {
    const memory = Buffer.allocUnsafeSlow(bytes);
    if (refused) return memory;
    try {
      preferHugePages(memory);
    } catch (error) {
      refused = true;
      log.debug("no huge pages: random reads take more processor time", { operation: "start", error: describe(error) });
    }
    return memory;
  };
}
