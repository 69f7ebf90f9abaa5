/** Growth of a process's memory over a long run, with garbage taken away before each look. */
import { readFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Resident bytes of a process of this machine, as the kernel counts them. */
export function residentBytes(pid: number | "self"): number {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1];
  return Number(kib) * 1024;
}

/** Resident bytes of this process after its garbage has gone. */
export function settledBytes(): number {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  collect();
  return residentBytes("self");
}
