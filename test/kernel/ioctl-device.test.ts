/** The kernel's nbd devices by ioctl, the way without netlink. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { closeSync } from "node:fs";
import { before, test } from "node:test";
import { promisify } from "node:util";
import { isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import type { BlockDevice } from "../../src/block/device.ts";
import { FaultyDevice } from "../../src/block/faulty-device.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { isFree } from "../../src/nbd/kernel/device-state.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";
import type { KernelNbd } from "../../src/nbd/kernel/nbd-device.ts";
import { connectionOfFd } from "../../src/nbd/socket-connection.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { kernelTests } from "./kernel-tests.ts";

const run = promisify(execFile);
const sh = async (script: string): Promise<string> => (await run("/bin/sh", ["-ec", script])).stdout.trim();
const sizeBytes = 32 * 2 ** 20;
const options = {
  sizeBytes,
  blockSizeBytes: 4096,
  readOnly: false,
  requestTimerMs: 500,
  deadConnectionTimeoutSeconds: 9,
};

let kernel: KernelNbd;

async function serve(backendIdentifier: string, device: BlockDevice = new MemoryDevice({ sizeBytes })) {
  const { kernelFd, serverFd } = kernel.socketPair();
  const transmission = new Transmission(connectionOfFd(serverFd), device, { onDrain: "stop" });
  const connected = await kernel.connect({ fds: [kernelFd], backendIdentifier, ...options });
  return { ...connected, backendIdentifier, transmission };
}

kernelTests({ url: import.meta.url, name: "kernel devices by ioctl", timeoutMs: 840_000 }, () => {
  before(async () => {
    kernel = await openKernelNbd({ clock: systemClock, log: nullLog, interface: "ioctl" });
  });

  test("a device by ioctl carries a file system and is freed", async () => {
    const served = await serve("s3block:test:one");
    const { index, devicePath, backendIdentifier } = served;
    const sum = await sh(`mkfs.ext4 -q ${devicePath}; mkdir -p /run/ioctl; mount ${devicePath} /run/ioctl
      dd if=/dev/urandom of=/run/ioctl/file bs=1M count=4 2>/dev/null; sha256sum </run/ioctl/file; umount /run/ioctl`);
    assert.equal(kernel.findByBackend(backendIdentifier)?.index, index);
    await sh(`mount ${devicePath} /run/ioctl`);
    await assert.rejects(kernel.disconnect({ index, backendIdentifier }), (error) => isKind(error, "in-use"));
    assert.equal(await sh("sha256sum </run/ioctl/file; umount /run/ioctl"), sum);
    await kernel.disconnect({ index, backendIdentifier });
    await served.transmission.closed;
    const state = kernel.get(index);
    assert.ok(state !== undefined && isFree(state));
    await kernel.disconnect({ index, backendIdentifier });
  });

  test("a slow answer is waited for: there is no other connection to ask", async () => {
    const memory = new MemoryDevice({ sizeBytes });
    const slow = new FaultyDevice(memory, systemClock, ({ offset }) => (offset >= 2 ** 20 ? { delayMs: 4000 } : {}));
    const served = await serve("s3block:test:slow", slow);
    await sh(`dd if=${served.devicePath} of=/dev/null bs=64k skip=16 count=1 iflag=direct 2>&1`);
    await kernel.disconnect(served);
    await served.transmission.closed;
  });

  test("reconnect and resize are refused, and so is another's device", async () => {
    const served = await serve("s3block:test:two");
    const { index, backendIdentifier } = served;
    assert.equal(kernel.canReconnect, false);
    const pair = kernel.socketPair();
    const again = { index, backendIdentifier, fds: [pair.kernelFd], ...options };
    await assert.rejects(kernel.reconnect(again), (error) => isKind(error, "unavailable"));
    closeSync(pair.serverFd);
    await assert.rejects(kernel.resize({ index, backendIdentifier, sizeBytes: 2 * sizeBytes }), (error) =>
      isKind(error, "unavailable"),
    );
    await assert.rejects(kernel.disconnect({ index, backendIdentifier: "another" }), (error) =>
      isKind(error, "conflict"),
    );
    await kernel.disconnect({ index, backendIdentifier });
    await served.transmission.closed;
  });

  test("when every device is in use the error names the way out", async () => {
    // By netlink, since that is quicker, and with nobody at the other end.
    const netlink = await openKernelNbd({ clock: systemClock, log: nullLog, interface: "netlink" });
    const all: { index: number; backendIdentifier: string; serverFd: number }[] = [];
    for (const { index } of kernel.list()) {
      const { kernelFd, serverFd } = netlink.socketPair();
      const backendIdentifier = `s3block:test:all-${index}`;
      await netlink.connect({ index, fds: [kernelFd], backendIdentifier, ...options });
      all.push({ index, backendIdentifier, serverFd });
    }
    await assert.rejects(
      serve("s3block:test:more"),
      (error) => isKind(error, "exhausted") && error.message.includes("nbds_max"),
    );
    for (const taken of all) {
      await netlink.disconnect(taken);
      closeSync(taken.serverFd);
    }
  });

  test("a process that serves by ioctl can end", async () => {
    const source = (path: string): string => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href);
    const script = `
      const { openKernelNbd } = await import(${source("nbd/kernel/kernel-nbd.ts")});
      const { systemClock } = await import(${source("base/system-clock.ts")});
      const { nullLog } = await import(${source("base/log.ts")});
      const kernel = await openKernelNbd({ clock: systemClock, log: nullLog, interface: "ioctl" });
      const { kernelFd } = kernel.socketPair();
      const options = ${JSON.stringify({ ...options, backendIdentifier: "s3block:test:ends" })};
      console.log((await kernel.connect({ fds: [kernelFd], ...options })).devicePath);
      process.exit(0);`;
    const { stdout } = await run(process.execPath, ["--input-type=module", "-e", script], { timeout: 20_000 });
    assert.match(stdout, /^\/dev\/nbd\d+\n$/);
    assert.ok(kernel.list().every(isFree));
  });
});
