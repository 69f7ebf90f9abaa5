/** The kernel's nbd devices by netlink: connect, file systems on them, reconnect, resize, disconnect, what is refused. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, openSync, closeSync, readFileSync, rmSync, statSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { isFree, NbdSysfs } from "../../src/nbd/kernel/device-state.ts";
import { becomeIoFlusher } from "../../src/nbd/kernel/io-flusher.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";
import { loadLibc } from "../../src/nbd/kernel/libc.ts";
import type { KernelDevice, KernelNbd } from "../../src/nbd/kernel/nbd-device.ts";
import { CONTROLLER_FAMILY, decodeFamily, encodeGetFamily } from "../../src/nbd/kernel/nbd-messages.ts";
import { NetlinkNbd } from "../../src/nbd/kernel/netlink-nbd.ts";
import { requestNetlink } from "../../src/nbd/kernel/netlink-socket.ts";
import { connectionOfFd } from "../../src/nbd/socket-connection.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { kernelTests } from "./kernel-tests.ts";

const run = promisify(execFile);
const timeouts = { requestTimerMs: 5000, deadConnectionTimeoutSeconds: 3600 };
const mebibyte = 2 ** 20;
/** The programs a test runs are the ones that use the device, so they must not stop this thread, which serves it. */
const sh = async (script: string): Promise<string> => (await run("/bin/sh", ["-ec", script])).stdout.trim();

interface Served extends KernelDevice {
  backendIdentifier: string;
  transmission: Transmission;
}

let kernel: KernelNbd;
let directory: string;
let count = 0;

async function serve(sizeBytes: number, more: { blockSizeBytes?: number; readOnly?: boolean; index?: number } = {}) {
  const blockSizeBytes = more.blockSizeBytes ?? 4096;
  const device = new MemoryDevice({ sizeBytes, blockSizeBytes });
  const { kernelFd, serverFd } = kernel.socketPair();
  const transmission = new Transmission(connectionOfFd(serverFd), device, { onDrain: "stop" });
  count += 1;
  const backendIdentifier = `s3block:test:${count}`;
  const connected = await kernel.connect({
    fds: [kernelFd],
    sizeBytes,
    blockSizeBytes,
    readOnly: false,
    backendIdentifier,
    ...timeouts,
    ...more,
  });
  return { ...connected, backendIdentifier, transmission, device };
}

async function release(served: Served): Promise<void> {
  await kernel.disconnect(served);
  await served.transmission.closed;
}

/** The netlink way with `whenTaken` between the message that hands sockets over and the next. */
async function netlinkNbd(whenTaken: () => Promise<void>): Promise<KernelNbd> {
  const parts = { libc: await loadLibc(), clock: systemClock };
  const question = { family: CONTROLLER_FAMILY, payload: encodeGetFamily(), deadlineMs: 5000 };
  const family = decodeFamily((await requestNetlink(parts, question))[0]);
  let messages = 0;
  return new NetlinkNbd({
    ...parts,
    log: nullLog,
    sysfs: new NbdSysfs(),
    deviceRoot: "/dev",
    request: async (payload, deadlineMs, whenHandled) => {
      const answer = await requestNetlink(parts, { family, payload, deadlineMs, whenHandled });
      messages += 1;
      if (messages === 1) await whenTaken();
      return answer;
    },
  });
}

const queue = (index: number, name: string): string =>
  readFileSync(`/sys/block/nbd${index}/queue/${name}`, "utf8").trim();

function defineAttachTests(): void {
  for (const type of ["ext4", "xfs"]) {
    test(`a ${type} file system keeps what is copied into it over unmount and mount`, async () => {
      const served = await serve(512 * mebibyte);
      const at = join(directory, type);
      const sums = "find . -type f -exec sha256sum {} + | sort | sha256sum";
      const expected = await sh(`cd ${process.cwd()}/src; ${sums}`);
      await sh(`mkfs.${type} -q ${served.devicePath}; mkdir ${at}; mount ${served.devicePath} ${at}
        cp -r ${process.cwd()}/src ${at}/copy; umount ${at}; mount ${served.devicePath} ${at}`);
      assert.equal(await sh(`cd ${at}/copy; ${sums}`), expected);
      const inUse = kernel.disconnect(served);
      await assert.rejects(inUse, (error) => isKind(error, "in-use") && error.message.includes(`mounted at ${at}`));
      await sh(`umount ${at}; fsck.${type} ${type === "ext4" ? "-fn" : ""} ${served.devicePath}`);
      await release(served);
      const state = kernel.get(served.index);
      assert.ok(state !== undefined && isFree(state));
      await kernel.disconnect(served);
    });
  }

  test("a device has the size, the block size and the abilities it was connected with", async () => {
    const served = await serve(8 * mebibyte, { blockSizeBytes: 512 });
    assert.equal(await sh(`blockdev --getsize64 ${served.devicePath}`), String(8 * mebibyte));
    assert.equal(queue(served.index, "logical_block_size"), "512");
    assert.equal(queue(served.index, "write_cache"), "write back");
    assert.equal(queue(served.index, "fua"), "1");
    assert.notEqual(queue(served.index, "discard_max_bytes"), "0");
    assert.equal(kernel.findByBackend(served.backendIdentifier)?.index, served.index);
    assert.equal(kernel.findByBackend("s3block:test:none"), undefined);
    await release(served);
  });

  test("a device connected read-only refuses writes", async () => {
    const served = await serve(8 * mebibyte, { readOnly: true });
    assert.equal(kernel.get(served.index)?.readOnly, true);
    await assert.rejects(sh(`dd if=/dev/zero of=${served.devicePath} bs=4096 count=1 oflag=direct 2>&1`));
    await release(served);
  });

  test("a live connection is never replaced, and a dead one is by a socket on which requests arrive", async () => {
    const served = await serve(8 * mebibyte);
    const { index, backendIdentifier } = served;
    const early = kernel.socketPair();
    const spare = new Transmission(connectionOfFd(early.serverFd), served.device, { onDrain: "stop" });
    const attempt = { index, backendIdentifier, ...timeouts, deadlineMs: 100 };
    await assert.rejects(kernel.reconnect({ ...attempt, fds: [early.kernelFd] }), (error) => isKind(error, "busy"));
    assert.equal((await spare.closed).reason, "end");
    await kernel.verify(index, 10_000);

    await served.transmission.destroy();
    const pair = kernel.socketPair();
    const next = new Transmission(connectionOfFd(pair.serverFd), served.device, { onDrain: "stop" });
    await kernel.reconnect({ index, backendIdentifier, fds: [pair.kernelFd], ...timeouts });
    await kernel.verify(index, 10_000);
    assert.ok(next.counters().requests > 0);
    await kernel.disconnect(served);
    await next.closed;
  });

  test("requests that were in flight on a lost connection are answered on the next one", async () => {
    const served = await serve(8 * mebibyte);
    const { index, backendIdentifier } = served;
    await served.transmission.destroy();
    const waiting = sh(`dd if=/dev/zero of=${served.devicePath} bs=64k count=16 oflag=direct conv=fsync 2>&1`);
    await assert.rejects(kernel.verify(index, 300), (error) => isKind(error, "unavailable"));
    const pair = kernel.socketPair();
    const next = new Transmission(connectionOfFd(pair.serverFd), served.device, { onDrain: "stop" });
    await kernel.reconnect({ index, backendIdentifier, fds: [pair.kernelFd], ...timeouts });
    await waiting;
    await kernel.disconnect(served);
    await next.closed;
  });

  test("a request that begins while a device is reconnected waits for seconds where that server dies, too", async () => {
    const served = await serve(8 * mebibyte);
    const { index, backendIdentifier } = served;
    const device = { index, backendIdentifier, ...timeouts, requestTimerMs: 500 };
    await served.transmission.destroy();
    const silent = kernel.socketPair();
    let begunMs = 0;
    let waiting: Promise<string> | undefined;
    const between = await netlinkNbd(async () => {
      waiting ??= sh(`dd if=${served.devicePath} of=/dev/null bs=4096 count=1 iflag=direct 2>&1`);
      while (kernel.get(index)?.inFlight === 0) await systemClock.sleep(5);
      begunMs = systemClock.monotonicMs();
    });
    await between.reconnect({ ...device, fds: [silent.kernelFd] });
    closeSync(silent.serverFd);
    const pair = kernel.socketPair();
    const next = new Transmission(connectionOfFd(pair.serverFd), served.device, { onDrain: "stop" });
    await kernel.reconnect({ ...device, fds: [pair.kernelFd] });
    await waiting;
    const waitedSeconds = (systemClock.monotonicMs() - begunMs) / 1000;
    await kernel.disconnect(served);
    await next.closed;
    // The kernel's own interval would be thirty.
    assert.ok(waitedSeconds < 20, `${waitedSeconds} s`);
  });

  test("a served device grows while it is in use", async () => {
    const served = await serve(8 * mebibyte);
    const larger = { index: served.index, backendIdentifier: served.backendIdentifier, sizeBytes: 16 * mebibyte };
    await kernel.resize(larger);
    assert.equal(await sh(`blockdev --getsize64 ${served.devicePath}`), String(16 * mebibyte));
    await release(served);
  });
}

function defineEdgeTests(): void {
  test("a device of another volume is left alone", async () => {
    const served = await serve(8 * mebibyte);
    const another = { index: served.index, backendIdentifier: "s3block:test:another" };
    const pair = kernel.socketPair();
    await assert.rejects(kernel.disconnect(another), (error) => isKind(error, "conflict"));
    await assert.rejects(kernel.reconnect({ ...another, fds: [pair.kernelFd], ...timeouts }), (error) =>
      isKind(error, "conflict"),
    );
    closeSync(pair.serverFd);
    await kernel.verify(served.index, 10_000);
    await release(served);
    const late = kernel.socketPair();
    const gone = { ...served, fds: [late.kernelFd], ...timeouts };
    await assert.rejects(kernel.reconnect(gone), (error) => isKind(error, "not-found"));
    closeSync(late.serverFd);
  });

  test("devices are to be had beyond the number the module was loaded with", async () => {
    const total = kernel.list().length + 2;
    const all: Served[] = [];
    for (let index = 0; index < total; index += 1) all.push(await serve(mebibyte));
    assert.equal(new Set(all.map((served) => served.index)).size, total);
    assert.ok(all.every((served) => statSync(served.devicePath).isBlockDevice()));
    for (const served of all) await release(served);
    assert.ok(kernel.list().every(isFree));
  });

  test("a missing device node is made again, and another file in its place is refused", async () => {
    unlinkSync("/dev/nbd3");
    const served = await serve(mebibyte, { index: 3 });
    await sh(`dd if=${served.devicePath} of=/dev/null bs=4096 count=1 iflag=direct`);
    await release(served);
    await sh("rm /dev/nbd3; touch /dev/nbd3");
    await assert.rejects(serve(mebibyte, { index: 3 }), (error) => isKind(error, "conflict"));
    assert.equal(kernel.get(3)?.connected, false);
    await sh("rm /dev/nbd3; mknod /dev/nbd3 b 43 3");
  });

  test("a device that a program holds open for a moment is waited for", async () => {
    const fd = openSync("/dev/nbd4", "r");
    const closing = systemClock.sleep(150).then(() => closeSync(fd));
    const served = await serve(mebibyte, { index: 4 });
    await closing;
    await release(served);
  });

  test("a device whose server never answers is found not to answer, and can be freed", async () => {
    const pair = kernel.socketPair();
    const backendIdentifier = "s3block:test:silent";
    const options = { sizeBytes: mebibyte, blockSizeBytes: 4096, readOnly: false, backendIdentifier, ...timeouts };
    const { index } = await kernel.connect({ fds: [pair.kernelFd], ...options });
    await assert.rejects(kernel.verify(index, 200), (error) => isKind(error, "unavailable"));
    await kernel.disconnect({ index, backendIdentifier });
    closeSync(pair.serverFd);
  });

  test("the mark that keeps a server from waiting for its own devices is inherited", async () => {
    const first = await becomeIoFlusher();
    assert.notEqual(first.state, "refused");
    assert.deepEqual(await becomeIoFlusher(), { state: "had" });
    const source = new URL("../../src/nbd/kernel/io-flusher.ts", import.meta.url).href;
    const script = `import("${source}").then(async (own) => console.log((await own.becomeIoFlusher()).state))`;
    assert.equal((await run(process.execPath, ["-e", script])).stdout.trim(), "had");
  });
}

kernelTests({ url: import.meta.url, name: "kernel devices by netlink", timeoutMs: 840_000 }, () => {
  before(async () => {
    kernel = await openKernelNbd({ clock: systemClock, log: nullLog, interface: "netlink" });
    directory = mkdtempSync(join(tmpdir(), "kernel-device-"));
  });
  after(() => rmSync(directory, { recursive: true, force: true }));
  defineAttachTests();
  defineEdgeTests();
});
