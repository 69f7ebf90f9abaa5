/**
 * What comes back on a netlink socket: a request is given datagrams of any content, and its answer goes on to the
 * decoders of the nbd family and to the attach that asked. Oracle: values of the kernel's ranges, the kernel's own
 * refusal, "corrupt", or "unavailable" where no answer is among them; and the descriptor is closed in every case.
 */
import assert from "node:assert/strict";
import { endianness } from "node:os";
import { isKind, OperationError } from "../../../src/base/errors.ts";
import { nullLog } from "../../../src/base/log.ts";
import { MIN_VOLUME_BYTES } from "../../../src/volume/identity.ts";
import type { NbdSysfs } from "../../../src/nbd/kernel/device-state.ts";
import type { Libc } from "../../../src/nbd/kernel/libc.ts";
import { decodeConnected, decodeFamily } from "../../../src/nbd/kernel/nbd-messages.ts";
import * as netlink from "../../../src/nbd/kernel/netlink.ts";
import { NetlinkNbd } from "../../../src/nbd/kernel/netlink-nbd.ts";
import { NetlinkError, requestNetlink } from "../../../src/nbd/kernel/netlink-socket.ts";
import { VirtualClock } from "../../simulation/virtual-clock.ts";
import type { FuzzTarget } from "../target.ts";

const FAMILY = 27;
const SEPARATOR = 64;

function message(type: number, payload: Buffer): Buffer {
  return netlink.encodeMessage({ type, flags: 0, sequence: 1, port: 0, payload });
}

function acknowledgement(errno: number): Buffer {
  const payload = Buffer.alloc(20);
  if (endianness() === "LE") payload.writeInt32LE(-errno, 0);
  else payload.writeInt32BE(-errno, 0);
  return message(netlink.TYPE_ERROR, payload);
}

/** Datagrams of SEPARATOR bytes, or one of all: what the socket gives, one receive after another. */
function datagramsOf(input: Buffer): Buffer[] {
  if (input.length % 3 !== 0) return [input];
  const datagrams: Buffer[] = [];
  for (let at = 0; at < input.length; at += SEPARATOR) datagrams.push(input.subarray(at, at + SEPARATOR));
  return datagrams;
}

/** A socket of the kernel that answers with the input, again and again where `repeats`. */
class AnsweringLibc {
  open = 0;
  receives = 0;
  readonly #datagrams: readonly Buffer[];

  constructor(input: Buffer) {
    this.#datagrams = datagramsOf(input);
  }

  asLibc(): Libc {
    const calls: Partial<Libc> = {
      netlinkSocket: () => (this.open += 1),
      sendNetlink: () => Promise.resolve(),
      receive: () => this.#datagrams[this.receives++],
      close: () => void (this.open -= 1),
      errorName: (errno) => `E${errno}`,
    };
    return calls as Libc;
  }
}

async function settle(request: Promise<Buffer[]>): Promise<Buffer[] | string> {
  try {
    return await request;
  } catch (error) {
    if (error instanceof NetlinkError) return "refused";
    assert.ok(isKind(error, "corrupt", "unavailable"), `no typed error: ${String(error)}`);
    return error.kind;
  }
}

function checkPayload(payload: Buffer): void {
  for (const [decode, limit] of [
    [decodeFamily, 0xffff],
    [decodeConnected, 0xffff_ffff],
  ] as const) {
    try {
      const value = decode(payload);
      assert.ok(Number.isInteger(value) && value >= 0 && value <= limit);
    } catch (error) {
      assert.ok(isKind(error, "corrupt"), String(error));
    }
  }
}

/** An attach whose connect request is answered so: it must fail by a typed error, the device being none. */
async function attach(payloads: Buffer[]): Promise<void> {
  const sysfs: Partial<NbdSysfs> = { get: () => undefined, list: () => [] };
  const nbd = new NetlinkNbd({
    libc: { close: () => undefined } as Partial<Libc> as Libc,
    clock: new VirtualClock(),
    log: nullLog,
    sysfs: sysfs as NbdSysfs,
    deviceRoot: "/nonexistent",
    request: () => Promise.resolve(payloads),
  });
  const options = {
    fds: [9],
    sizeBytes: MIN_VOLUME_BYTES,
    blockSizeBytes: 4096,
    requestTimerMs: 2000,
    deadConnectionTimeoutSeconds: 60,
    readOnly: false,
    backendIdentifier: "s3block:a",
  };
  await assert.rejects(nbd.connect(options), (error) => error instanceof OperationError);
}

function answers(): FuzzTarget {
  const family = netlink.encodeGeneric(1, 2, [netlink.encodeU16(1, FAMILY)]);
  const connected = netlink.encodeGeneric(1, 1, [netlink.encodeU32(1, 7)]);
  return {
    name: "netlink-answers",
    seeds: [
      Buffer.concat([message(16, family), acknowledgement(0)]),
      Buffer.concat([message(FAMILY, connected), acknowledgement(0)]),
      Buffer.concat([message(FAMILY, connected), message(FAMILY, connected), acknowledgement(0)]),
      acknowledgement(16),
      acknowledgement(0),
    ],
    async run(input) {
      const libc = new AnsweringLibc(input);
      const parts = { libc: libc.asLibc(), clock: new VirtualClock() };
      const asked = { family: FAMILY, payload: connected, deadlineMs: 20 };
      const answer = await settle(requestNetlink(parts, asked));
      for (let turn = 0; turn < 3 && libc.open > 0; turn += 1) await parts.clock.yield();
      assert.equal(libc.open, 0, "the socket stays open");
      if (typeof answer === "string") return answer;
      for (const payload of answer) checkPayload(payload);
      await attach(answer);
      return "answered";
    },
  };
}

/** A socket that never falls silent and never acknowledges: the deadline must hold all the same. */
function flood(): FuzzTarget {
  const noise = message(FAMILY, netlink.encodeGeneric(1, 1, [netlink.encodeU32(1, 7)]));
  return {
    name: "netlink-flood",
    seeds: [noise],
    async run(input) {
      const clock = new VirtualClock();
      let receives = 0;
      const libc: Partial<Libc> = {
        netlinkSocket: () => 3,
        sendNetlink: () => Promise.resolve(),
        close: () => undefined,
        errorName: (errno) => `E${errno}`,
        receive: () => {
          receives += 1;
          assert.ok(receives < 100_000, "received without end");
          return input;
        },
      };
      const asked = { family: FAMILY, payload: noise, deadlineMs: 20 };
      const answer = await settle(requestNetlink({ libc: libc as Libc, clock }, asked));
      return typeof answer === "string" ? answer : "answered";
    },
  };
}

export const netlinkTargets = { "netlink-answers": answers, "netlink-flood": flood } as const;
