/**
 * The way from the guest to an S3 endpoint. The guest has no network but its own loopback, so connections are carried
 * over a directory that it shares with the machine: in the guest this file runs as a process that listens where the
 * endpoints' names lead there, on the machine it connects to the real ones. Bytes pass untouched, so that TLS and
 * signatures are between the driver and the store.
 *
 * Each direction is a sequence of files "<direction>-<number>" that appear whole (written, synced, renamed) and are
 * removed by their reader; at most WINDOW of them wait. A file is frames: connection u32, type u8, length u32, bytes.
 * As a program: `relay.ts DIRECTORY ENDPOINT…`, in the guest, where it changes /etc/hosts and the loopback interface.
 */
import { execFileSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { lookup } from "node:dns/promises";
import { connect, createServer, isIP, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const WINDOW = 8;
const pollMs = 3;
const headerBytes = 9;
const pauseBytes = 4 * 1024 ** 2;

type FrameType = "open" | "data" | "end" | "close";
const frameTypes: readonly FrameType[] = ["open", "data", "end", "close"];

interface Frame {
  connection: number;
  type: FrameType;
  /** For "open": one byte, the index of the endpoint. */
  bytes: Buffer;
}

interface Endpoint {
  host: string;
  port: number;
}

function parseEndpoints(urls: readonly string[]): Endpoint[] {
  return urls.map((text) => {
    const { hostname, port, protocol } = new URL(text);
    return { host: hostname.replaceAll(/^\[|\]$/g, ""), port: Number(port) || (protocol === "https:" ? 443 : 80) };
  });
}

/** Both directions of one side, and the sockets that stand on it. */
class RelayEnd {
  readonly #directory: string;
  readonly #sends: string;
  readonly #receives: string;
  readonly #onOpen: (connection: number, endpoint: number) => void;
  readonly #sockets = new Map<number, Socket>();
  #queue: Buffer[] = [];
  #queuedBytes = 0;
  #isOver = false;

  constructor(directory: string, side: "guest" | "machine", onOpen: (connection: number, endpoint: number) => void) {
    this.#directory = directory;
    this.#sends = side;
    this.#receives = side === "guest" ? "machine" : "guest";
    this.#onOpen = onOpen;
  }

  /** Carries until stopped. */
  async run(): Promise<void> {
    await Promise.all([this.#sendAll(), this.#receiveAll()]);
  }

  stop(): void {
    this.#isOver = true;
    for (const socket of this.#sockets.values()) socket.destroy();
  }

  send(frame: Frame): void {
    const header = Buffer.alloc(headerBytes);
    header.writeUInt32LE(frame.connection, 0);
    header.writeUInt8(frameTypes.indexOf(frame.type), 4);
    header.writeUInt32LE(frame.bytes.length, 5);
    this.#queue.push(header, frame.bytes);
    this.#queuedBytes += headerBytes + frame.bytes.length;
  }

  /** What the socket says goes to the other side, and the other way round. */
  adopt(connection: number, socket: Socket): void {
    this.#sockets.set(connection, socket);
    const none = Buffer.alloc(0);
    socket.setNoDelay(true);
    socket.on("data", (bytes: Buffer) => {
      this.send({ connection, type: "data", bytes });
      if (this.#queuedBytes > pauseBytes) socket.pause();
    });
    socket.on("end", () => this.send({ connection, type: "end", bytes: none }));
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      this.#sockets.delete(connection);
      this.send({ connection, type: "close", bytes: none });
    });
  }

  async #sendAll(): Promise<void> {
    for (let number = 0; !this.#isOver;) {
      if (this.#queue.length === 0 || existsSync(this.#path(this.#sends, number - WINDOW))) {
        await sleep(pollMs);
        continue;
      }
      const bytes = Buffer.concat(this.#queue);
      this.#queue = [];
      this.#queuedBytes = 0;
      const path = this.#path(this.#sends, number);
      const fd = openSync(`${path}.new`, "wx");
      for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
      fsyncSync(fd);
      closeSync(fd);
      renameSync(`${path}.new`, path);
      number += 1;
      for (const socket of this.#sockets.values()) socket.resume();
    }
  }

  async #receiveAll(): Promise<void> {
    for (let number = 0; !this.#isOver;) {
      const path = this.#path(this.#receives, number);
      if (!existsSync(path)) {
        await sleep(pollMs);
        continue;
      }
      const bytes = readFileSync(path);
      rmSync(path);
      number += 1;
      for (let at = 0; at < bytes.length;) {
        const length = bytes.readUInt32LE(at + 5);
        const start = at + headerBytes;
        const type = frameTypes[bytes.readUInt8(at + 4)];
        this.#take({ connection: bytes.readUInt32LE(at), type, bytes: bytes.subarray(start, start + length) });
        at = start + length;
      }
    }
  }

  #take({ connection, type, bytes }: Frame): void {
    if (type === "open") this.#onOpen(connection, bytes.readUInt8(0));
    const socket = this.#sockets.get(connection);
    if (type === "data") socket?.write(bytes);
    else if (type === "end") socket?.end();
    else if (type === "close") socket?.destroy();
  }

  #path(direction: string, number: number): string {
    return join(this.#directory, `${direction}-${number}`);
  }
}

/** The machine's side: connects to the endpoints for the guest. Call stop() on what it returns. */
export function serveGuest(directory: string, urls: readonly string[]): { stop(): void; ended: Promise<void> } {
  const endpoints = parseEndpoints(urls);
  const end = new RelayEnd(directory, "machine", (connection, index) => {
    end.adopt(connection, connect({ ...endpoints[index], allowHalfOpen: true }));
  });
  return { stop: () => end.stop(), ended: end.run() };
}

/** The guest's side: makes the endpoints' names lead here, and listens in their place. */
async function runInGuest(directory: string, urls: readonly string[]): Promise<void> {
  let connections = 0;
  const end = new RelayEnd(directory, "guest", () => {});
  for (const [index, endpoint] of parseEndpoints(urls).entries()) {
    for (const address of await takeAddresses(endpoint.host, index)) {
      const server = createServer({ allowHalfOpen: true }, (socket) => {
        connections += 1;
        end.send({ connection: connections, type: "open", bytes: Buffer.of(index) });
        end.adopt(connections, socket);
      });
      await new Promise<void>((fulfil, reject) => {
        server.once("error", reject);
        server.listen(endpoint.port, address, fulfil);
      });
    }
  }
  process.stdout.write("listening\n");
  await end.run();
}

async function takeAddresses(host: string, index: number): Promise<string[]> {
  if (isIP(host) === 0 && host !== "localhost") {
    const hosts = readFileSync("/etc/hosts", "utf8");
    writeFileSync("/etc/hosts", `127.77.0.${index + 1} ${host}\n${hosts}`);
  } else if (isIP(host) !== 0 && !host.startsWith("127.") && host !== "::1") {
    execFileSync("ip", ["address", "replace", `${host}/${isIP(host) === 4 ? 32 : 128}`, "dev", "lo"]);
  }
  const addresses = await lookup(host, { all: true });
  return [...new Set(addresses.map(({ address }) => address))];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [directory, ...urls] = process.argv.slice(2);
  await runInGuest(directory, urls);
}
