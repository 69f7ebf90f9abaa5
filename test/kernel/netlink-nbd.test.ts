/** The netlink way without a kernel: what it asks, what it makes of refusals and silence, and who closes what. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { type ErrorKind, isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { isFree, NbdSysfs } from "../../src/nbd/kernel/device-state.ts";
import { type Libc, loadLibc } from "../../src/nbd/kernel/libc.ts";
import { CONTROLLER_FAMILY, encodeGetFamily } from "../../src/nbd/kernel/nbd-messages.ts";
import { decodeGeneric, encodeGeneric, encodeU32 } from "../../src/nbd/kernel/netlink.ts";
import { NetlinkNbd } from "../../src/nbd/kernel/netlink-nbd.ts";
import { NetlinkError, requestNetlink } from "../../src/nbd/kernel/netlink-socket.ts";

const options = {
  fds: [11],
  sizeBytes: 1 << 20,
  blockSizeBytes: 4096,
  readOnly: false,
  backendIdentifier: "s3block:n:v",
  requestTimerMs: 5000,
  deadConnectionTimeoutSeconds: 3600,
};
const commandConnect = 1;
const commandDisconnect = 2;
const commandReconfigure = 3;

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "netlink-nbd-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

interface FakeState {
  connected?: boolean;
  backend?: string;
  sizeBytes?: number;
  holders?: string[];
}

/** Writes what sysfs says of a device. */
function putDevice(index: number, state: FakeState): void {
  const directory = join(root, "sys/block", `nbd${index}`);
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(join(directory, "holders"), { recursive: true });
  writeFileSync(join(directory, "dev"), `43:${index}\n`);
  writeFileSync(join(directory, "size"), `${(state.sizeBytes ?? 0) / 512}\n`);
  writeFileSync(join(directory, "ro"), "0\n");
  writeFileSync(join(directory, "inflight"), "       0        0\n");
  if (state.connected === true) writeFileSync(join(directory, "pid"), "1\n");
  if (state.backend !== undefined) writeFileSync(join(directory, "backend"), `${state.backend}\n`);
  for (const holder of state.holders ?? []) writeFileSync(join(directory, "holders", holder), "");
}

function fake(answer: (command: number) => Buffer[], sendTimeoutMs: () => number = () => 5000) {
  const closed: number[] = [];
  const commands: number[] = [];
  const sendTimeouts: [number, number][] = [];
  const libc = {
    close: (fd: number) => {
      closed.push(fd);
    },
    sendTimeoutMs,
    setSendTimeoutMs: (fd: number, ms: number) => {
      sendTimeouts.push([fd, ms]);
    },
    makeBlockNode: () => {
      throw new Error("EPERM");
    },
  } as unknown as Libc;
  const kernel = new NetlinkNbd({
    libc,
    clock: systemClock,
    log: nullLog,
    sysfs: new NbdSysfs({ sys: join(root, "sys"), proc: join(root, "proc") }),
    deviceRoot: join(root, "dev"),
    request: async (payload, _deadlineMs, whenHandled) => {
      const { command } = decodeGeneric(payload);
      commands.push(command);
      const answers = answer(command);
      whenHandled?.();
      return Promise.resolve(answers);
    },
  });
  return { kernel, closed, commands, sendTimeouts };
}

const refuse = (code: string) => (): Buffer[] => {
  throw new NetlinkError(code);
};

describe("a refusal of the kernel", () => {
  const kinds: [string, ErrorKind][] = [
    ["EPERM", "unavailable"],
    ["ENOMEM", "exhausted"],
    ["ENOSPC", "exhausted"],
    ["EINVAL", "conflict"],
    ["EIO", "unavailable"],
  ];
  for (const [code, kind] of kinds) {
    test(`${code} at connect is "${kind}" with the errno in the message, and the socket is closed`, async () => {
      const { kernel, closed } = fake(refuse(code));
      await assert.rejects(kernel.connect(options), (error) => isKind(error, kind) && error.message.includes(code));
      assert.deepEqual(closed, [11]);
    });
  }

  test("EBUSY for a device that somebody else connected is busy at once", async () => {
    putDevice(2, { connected: true, backend: "another" });
    const { kernel, commands } = fake(refuse("EBUSY"));
    await assert.rejects(kernel.connect({ ...options, index: 2 }), (error) => isKind(error, "busy"));
    assert.equal(commands.length, 1);
  });
});

describe("connect", () => {
  test("disconnects again where the node cannot be made", async () => {
    putDevice(4, { connected: true, backend: options.backendIdentifier, sizeBytes: options.sizeBytes });
    const { kernel, closed, commands } = fake(() => [encodeGeneric(commandConnect, 1, [encodeU32(1, 4)])]);
    await assert.rejects(
      kernel.connect(options),
      (error) => isKind(error, "unavailable") && error.message.includes("CAP_MKNOD"),
    );
    assert.deepEqual(commands, [commandConnect, commandDisconnect]);
    assert.deepEqual(closed, [11]);
  });
});

describe("reconnect", () => {
  const reconnect = { ...options, index: 1 };

  test("asks again until the kernel has taken the socket", async () => {
    putDevice(1, { connected: true, backend: options.backendIdentifier });
    let looks = 0;
    const { kernel, closed, commands, sendTimeouts } = fake(
      () => [],
      () => (++looks < 3 ? 0 : 5000),
    );
    await kernel.reconnect(reconnect);
    // Three times the socket, then its timeout taken away.
    assert.deepEqual(commands, Array(4).fill(commandReconfigure));
    assert.deepEqual(sendTimeouts, [[11, 30_000]]);
    assert.deepEqual(closed, [11]);
  });

  test("sets the interval in which the kernel looks after unanswered requests", async () => {
    putDevice(1, { connected: true, backend: options.backendIdentifier });
    mkdirSync(join(root, "sys/block/nbd1/queue"));
    const { kernel } = fake(() => []);
    await kernel.reconnect(reconnect);
    assert.equal(readFileSync(join(root, "sys/block/nbd1/queue/io_timeout"), "utf8"), "5000");
  });

  test("gives up as busy at its deadline, and leaves the timeout as it was", async () => {
    putDevice(1, { connected: true, backend: options.backendIdentifier });
    mkdirSync(join(root, "sys/block/nbd1/queue"));
    const { kernel, closed } = fake(
      () => [],
      () => 0,
    );
    await assert.rejects(kernel.reconnect({ ...reconnect, deadlineMs: 1 }), (error) => isKind(error, "busy"));
    assert.deepEqual(closed, [11]);
    assert.equal(readFileSync(join(root, "sys/block/nbd1/queue/io_timeout"), "utf8"), "5000");
  });

  test("a second change of the same device at the same time is busy", async () => {
    putDevice(1, { connected: true, backend: options.backendIdentifier });
    const { kernel } = fake(
      () => [],
      () => 0,
    );
    const first = kernel.reconnect({ ...reconnect, deadlineMs: 1 });
    await assert.rejects(
      kernel.disconnect(reconnect),
      (error) => isKind(error, "busy") && error.message.includes("in work"),
    );
    await assert.rejects(first);
  });

  test("touches no device that is not connected or is another's", async () => {
    putDevice(1, { connected: true, backend: "another" });
    putDevice(2, {});
    const { kernel, commands } = fake(() => []);
    await assert.rejects(kernel.reconnect(reconnect), (error) => isKind(error, "conflict"));
    await assert.rejects(kernel.reconnect({ ...reconnect, index: 2 }), (error) => isKind(error, "not-found"));
    assert.deepEqual(commands, []);
  });
});

describe("disconnect", () => {
  const ours = { index: 1, backendIdentifier: options.backendIdentifier };

  test("refuses a device with a holder, a mount in any namespace or swap on it, and says which", async () => {
    const { kernel, commands } = fake(() => []);
    const refused = async (text: string): Promise<void> => {
      await assert.rejects(kernel.disconnect(ours), (error) => isKind(error, "in-use") && error.message.includes(text));
    };
    putDevice(1, { connected: true, backend: ours.backendIdentifier, holders: ["dm-3"] });
    await refused("held by dm-3");
    putDevice(1, { connected: true, backend: ours.backendIdentifier });
    mkdirSync(join(root, "proc/1"), { recursive: true });
    writeFileSync(join(root, "proc/1/mountinfo"), "36 35 43:1 / /pods/a rw,noatime - ext4 /dev/nbd1 rw\n");
    await refused("mounted at /pods/a");
    rmSync(join(root, "proc"), { recursive: true });
    mkdirSync(join(root, "sys/fs/xfs/nbd1"), { recursive: true });
    await refused("mounted as xfs");
    rmSync(join(root, "sys/fs"), { recursive: true });
    mkdirSync(join(root, "proc"));
    writeFileSync(join(root, "proc/swaps"), "Filename Type Size Used Priority\n/dev/nbd1 partition 1 0 -2\n");
    await refused("used as swap");
    assert.deepEqual(commands, []);
  });

  test("a free device is no error", async () => {
    putDevice(1, {});
    const { kernel, commands } = fake(() => []);
    await kernel.disconnect(ours);
    assert.deepEqual(commands, []);
  });
});

describe("the state of the devices", () => {
  test("is listed by index, with what is free told from what is not", () => {
    putDevice(10, { connected: true, backend: "b", sizeBytes: 4096 });
    putDevice(2, {});
    mkdirSync(join(root, "sys/block/sda"));
    const { kernel } = fake(() => []);
    assert.deepEqual(
      kernel
        .list()
        .map((state) => [state.index, state.connected, state.backendIdentifier, state.sizeBytes, isFree(state)]),
      [
        [2, false, undefined, 0, true],
        [10, true, "b", 4096, false],
      ],
    );
    assert.equal(kernel.findByBackend("b")?.index, 10);
    assert.equal(kernel.get(3), undefined);
  });
});

describe("a netlink request", () => {
  test("asks this machine's kernel and gets its answer or its refusal", async () => {
    const request = { family: CONTROLLER_FAMILY, payload: encodeGetFamily(), deadlineMs: 5000 };
    const parts = { libc: await loadLibc(), clock: systemClock };
    const outcome = await requestNetlink(parts, request).catch((error: unknown) => error);
    // Whether this kernel has nbd or not, it answers.
    if (Array.isArray(outcome)) assert.equal(outcome.length, 1);
    else assert.equal((outcome as NetlinkError).code, "ENOENT");
  });

  test("whose answer has not come yet is looked for again", async () => {
    const libc = await loadLibc();
    const fd = libc.netlinkSocket();
    try {
      assert.equal(libc.receive(fd, Buffer.alloc(100)), undefined);
    } finally {
      libc.close(fd);
    }
  });

  test("that waits for nobody is handled before anything else happens on this thread", async () => {
    const family = CONTROLLER_FAMILY;
    const parts = { libc: await loadLibc(), clock: systemClock };
    const events: string[] = [];
    const whenHandled = (): void => void events.push("handled");
    const asked = requestNetlink(parts, { family, payload: encodeGetFamily(), deadlineMs: 5000, whenHandled });
    events.push("asked");
    await asked.catch(() => undefined);
    assert.deepEqual(events, ["handled", "asked"]);
  });

  test("that the kernel does not finish is given up at its deadline, and its socket closed when it does", async () => {
    const sent = Promise.withResolvers<void>();
    const closed = Promise.withResolvers<number>();
    const libc = {
      netlinkSocket: () => 21,
      sendNetlink: () => sent.promise,
      close: (fd: number) => closed.resolve(fd),
    } as unknown as Libc;
    const request = { family: 20, payload: Buffer.alloc(4), deadlineMs: 1 };
    await assert.rejects(requestNetlink({ libc, clock: systemClock }, request), (error) =>
      isKind(error, "unavailable"),
    );
    sent.resolve();
    assert.equal(await closed.promise, 21);
  });
});
