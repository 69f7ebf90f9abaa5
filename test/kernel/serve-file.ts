/**
 * Serves a file as a kernel nbd device until it is killed: `serve-file.ts FILE SIZE_BYTES BACKEND REQUEST_TIMER_MS`.
 * Takes over the device that a predecessor left; prints its path once requests are answered, and again after each
 * connection that the kernel gave up.
 */
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";
import { connectionOfFd } from "../../src/nbd/socket-connection.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { FileDevice } from "./file-device.ts";

const [path, size, backendIdentifier, requestTimerMs] = process.argv.slice(2);
const device = new FileDevice(path, Number(size));
const kernel = await openKernelNbd({ clock: systemClock, log: nullLog, interface: "netlink" });
const timeouts = { requestTimerMs: Number(requestTimerMs), deadConnectionTimeoutSeconds: 3600 };

for (;;) {
  const { kernelFd, serverFd } = kernel.socketPair();
  const transmission = new Transmission(connectionOfFd(serverFd), device, { onDrain: "stop" });
  const found = kernel.findByBackend(backendIdentifier);
  let index = found?.index;
  if (index === undefined) {
    const { sizeBytes, blockSizeBytes } = device;
    const options = { fds: [kernelFd], sizeBytes, blockSizeBytes, readOnly: false, backendIdentifier, ...timeouts };
    ({ index } = await kernel.connect(options));
  } else {
    await kernel.reconnect({ index, backendIdentifier, fds: [kernelFd], ...timeouts });
  }
  await kernel.verify(index, 60_000);
  process.stdout.write(`/dev/nbd${index}\n`);
  await transmission.closed;
  if (kernel.findByBackend(backendIdentifier) === undefined) break;
}
await device.close();
