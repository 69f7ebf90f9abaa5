/**
 * Tells the kernel that this process serves block devices, so that it must not wait for memory which can only be had
 * by writing to those devices (PR_SET_IO_FLUSHER, Linux 5.6; it also exempts from throttling of dirty pages).
 * The mark belongs to a thread and is inherited by the threads and processes it starts, also through execve: threads
 * that run already (V8's, the pool's) do not get it. Whoever wants all of them sets it and then replaces the process
 * (process.execve), or is started by a process that has it.
 */
import { describe } from "../../base/errors.ts";
import { loadLibc } from "./libc.ts";

export type IoFlusherOutcome = { state: "had" | "set" } | { state: "refused"; reason: string };

/**
 * Marks the calling thread. "had": it was marked before (inherited, so all threads of this process are); "refused":
 * the kernel does not allow it (needs CAP_SYS_RESOURCE and Linux 5.6) or the binding does not load.
 */
export async function becomeIoFlusher(): Promise<IoFlusherOutcome> {
  try {
    const libc = await loadLibc();
    if (libc.isIoFlusher()) return { state: "had" };
    libc.setIoFlusher();
    return { state: "set" };
  } catch (error) {
    return { state: "refused", reason: describe(error) };
  }
}
