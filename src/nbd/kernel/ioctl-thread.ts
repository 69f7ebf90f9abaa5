/**
 * The thread behind ioctl-nbd.ts: runs one task on one device and ends. "serve" sets the device up and then sits in
 * NBD_DO_IT, which returns when the connection breaks or the device is disconnected.
 * Tells its parent once, by message: after the last step that returns at once, or with the error that prevented it.
 * Source: Linux include/uapi/linux/nbd.h; the order of the steps is that of drivers/block/nbd.c.
 */
import { closeSync, constants, openSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { type Libc, loadLibc, SystemCallError } from "./libc.ts";

export type IoctlTask =
  | {
      kind: "serve";
      devicePath: string;
      fd: number;
      blockSizeBytes: number;
      blockCount: number;
      flags: number;
    }
  | { kind: "disconnect"; devicePath: string };

/** `error`: an errno's name or a message; undefined where all went well. */
export interface IoctlTaskEvent {
  error: string | undefined;
}

const SET_SOCK = 0xab00;
const SET_BLKSIZE = 0xab01;
const DO_IT = 0xab03;
const CLEAR_SOCK = 0xab04;
const SET_SIZE_BLOCKS = 0xab07;
const DISCONNECT = 0xab08;
const SET_TIMEOUT = 0xab09;
const SET_FLAGS = 0xab0a;

function run(libc: Libc, task: IoctlTask, report: (error: string | undefined) => void): void {
  const device = openSync(task.devicePath, constants.O_RDWR);
  try {
    if (task.kind === "disconnect") {
      libc.ioctl(device, DISCONNECT, 0);
      libc.ioctl(device, CLEAR_SOCK, 0);
      report(undefined);
      return;
    }
    libc.ioctl(device, CLEAR_SOCK, 0);
    libc.ioctl(device, SET_BLKSIZE, task.blockSizeBytes);
    libc.ioctl(device, SET_SIZE_BLOCKS, task.blockCount);
    libc.ioctl(device, SET_SOCK, task.fd);
    libc.ioctl(device, SET_FLAGS, task.flags);
    // None: with one, a connection whose server is merely slow would be given up, and there is no other.
    libc.ioctl(device, SET_TIMEOUT, 0);
    report(undefined);
    try {
      libc.ioctl(device, DO_IT, 0);
    } finally {
      libc.ioctl(device, CLEAR_SOCK, 0);
    }
  } finally {
    closeSync(device);
  }
}

const report = (error: string | undefined): void => parentPort?.postMessage({ error } satisfies IoctlTaskEvent);
try {
  run(await loadLibc(), workerData as IoctlTask, report);
} catch (error) {
  report(error instanceof SystemCallError ? error.code : String(error));
}
