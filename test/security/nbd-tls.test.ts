/**
 * NBD over TCP with TLS: who gets in and who does not, what is answered before, and that nothing a client sends before TLS
 * counts afterwards. On sockets of this machine, by clients written from the protocol document (test/nbd/frames.ts).
 */
import assert from "node:assert/strict";
import { copyFile, mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { after, before, describe, test } from "node:test";
import { connect as connectTls } from "node:tls";
import type { ConnectionOptions, TLSSocket } from "node:tls";
import type { VolumeExport } from "../../src/attachment/exports.ts";
import type { ServedConnection, ServedVolume } from "../../src/attachment/volume-host.ts";
import type { Clock } from "../../src/base/clock.ts";
import { isKind } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { transmitElsewhere } from "../../src/cli/remote-transmission.ts";
import { loadLibc } from "../../src/nbd/kernel/libc.ts";
import type { NbdServerOptions } from "../../src/nbd/server.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { connectionOfFd } from "../../src/nbd/socket-connection.ts";
import { Transmission } from "../../src/nbd/transmission.ts";
import { RecordingLog } from "../csi/recording-log.ts";
import { clientFlags, infoData, option, optionReplies, replies, request } from "../nbd/frames.ts";
import type { Certificates } from "./certificates.ts";
import { makeCertificates, pem } from "./certificates.ts";

const MIB = 1024 * 1024;
const EXPORT_NAME = 1;
const ABORT = 2;
const LIST = 3;
const STARTTLS = 5;
const INFO = 6;
const GO = 7;
const ACK = 1;
const INVALID = 0x80000003;
const TLS_REQUIRED = 0x80000005;

let directory = "";
let certificates: Certificates;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "s3block-tls-"));
  certificates = await makeCertificates(directory);
});

after(() => rm(directory, { recursive: true, force: true }));

/** Reads exact pieces of a stream; what has come by the end is kept. */
class Reader {
  readonly #stream: Duplex;
  #chunks: Buffer[] = [];
  #receivedBytes = 0;
  #over = false;
  #wake: (() => void) | undefined;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on("data", this.#data);
    for (const event of ["end", "close", "error"]) stream.on(event, this.#end);
  }

  readonly #data = (bytes: Buffer): void => {
    this.#chunks.push(bytes);
    this.#receivedBytes += bytes.length;
    this.#wake?.();
  };

  readonly #end = (): void => {
    this.#over = true;
    this.#wake?.();
  };

  async read(length: number): Promise<Buffer> {
    while (this.#receivedBytes < length) {
      if (this.#over) throw new Error(`closed after ${this.#receivedBytes} of ${length} bytes`);
      await this.#news();
    }
    const all = Buffer.concat(this.#chunks);
    this.#chunks = [all.subarray(length)];
    this.#receivedBytes -= length;
    return all.subarray(0, length);
  }

  /** Everything until the other side has closed. */
  async rest(): Promise<Buffer> {
    while (!this.#over) await this.#news();
    return Buffer.concat(this.#chunks);
  }

  /** Hears nothing more: the stream is another's. */
  detach(): void {
    this.#stream.off("data", this.#data);
  }

  #news(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

interface Bench {
  server: NbdServer;
  log: RecordingLog;
  device: MemoryDevice;
  opened: string[];
  released(): number;
  /** A connection that has read the greeting and sent its flags. */
  plain(): Promise<{ socket: Socket; reader: Reader }>;
  /** The replies to one option without TLS: type of the first. */
  ask(client: { socket: Socket; reader: Reader }, number: number, data?: Buffer): Promise<number>;
  /** A client through TLS; rejects where it is not let in. */
  secret(options?: ConnectionOptions): Promise<{ socket: TLSSocket; reader: Reader; raw: Socket }>;
}

async function withServer(
  run: (bench: Bench) => Promise<void>,
  options: Partial<NbdServerOptions> & { certFile?: string; keyFile?: string } = {},
): Promise<void> {
  const { certFile = certificates.server.certFile, keyFile = certificates.server.keyFile, ...rest } = options;
  const device = new MemoryDevice({ sizeBytes: 64 * MIB });
  const opened: string[] = [];
  const log = new RecordingLog();
  let releases = 0;
  const source = {
    list: () => ["disk"],
    open: async (name: string) => {
      opened.push(name);
      return { device, release: () => void (releases += 1) };
    },
  };
  const server = new NbdServer({ source, clock: systemClock, log, ...rest });
  const sockets: Socket[] = [];
  try {
    const tls = { certFile, keyFile, caFile: certificates.caFile };
    const port = await server.listen({ host: "127.0.0.1", port: 0, tls });
    const plain = async () => {
      const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
      sockets.push(socket);
      const reader = new Reader(socket);
      await reader.read(18);
      socket.write(clientFlags(3));
      return { socket, reader };
    };
    const ask: Bench["ask"] = async ({ socket, reader }, number, data) => {
      socket.write(option(number, data));
      const header = await reader.read(20);
      await reader.read(header.readUInt32BE(16));
      return header.readUInt32BE(12);
    };
    const secret: Bench["secret"] = async (tlsOptions) => {
      const client = await plain();
      assert.equal(await ask(client, STARTTLS), ACK);
      client.reader.detach();
      const own = tlsOptions ?? (await pem(certificates.client));
      const ca = await pem({ certFile: certificates.caFile, keyFile: certificates.client.keyFile });
      const socket = connectTls({ socket: client.socket, servername: "localhost", ca: ca.cert, ...own });
      const secured = new Promise<void>((resolve, reject) => {
        socket.once("secureConnect", resolve);
        socket.once("error", reject);
        socket.once("close", () => reject(new Error("closed")));
      });
      const reader = new Reader(socket);
      await secured;
      return { socket, reader, raw: client.socket };
    };
    await run({ server, log, device, opened, released: () => releases, plain, ask, secret });
  } finally {
    for (const socket of sockets) socket.destroy();
    await server.close(0);
  }
}

async function go({ socket, reader }: { socket: Duplex; reader: Reader }): Promise<void> {
  socket.write(option(GO, infoData("disk")));
  const answer = await reader.read(32 + 34 + 20);
  assert.deepEqual(
    optionReplies(answer).map(({ type }) => type),
    [3, 3, ACK],
  );
}

async function untilEmpty(server: NbdServer): Promise<void> {
  while (server.connectionCount > 0) await systemClock.yield();
}

describe("before tls", () => {
  test("every option but ABORT is told that tls is required, no export is opened, and then tls can still be started", () =>
    withServer(async ({ plain, ask, opened, secret }) => {
      const client = await plain();
      const data = infoData("disk");
      for (const [number, bytes] of [
        [LIST, undefined],
        [INFO, data],
        [GO, data],
        [8, undefined],
        [10, data],
        [0xffffffff, Buffer.alloc(100_000)],
      ] as const) {
        assert.equal(await ask(client, number, bytes), TLS_REQUIRED, `option ${number}`);
      }
      assert.equal(await ask(client, STARTTLS), ACK);
      const other = await plain();
      assert.equal(await ask(other, ABORT), ACK);
      await other.reader.rest();
      assert.deepEqual(opened, []);
      await go(await secret());
      assert.deepEqual(opened, ["disk"]);
    }));

  test("an export asked for by the oldest option ends the connection, and so does a client without fixed newstyle", () =>
    withServer(async ({ plain, opened, server }) => {
      const client = await plain();
      client.socket.write(option(EXPORT_NAME, Buffer.from("disk")));
      assert.equal((await client.reader.rest()).length, 0);
      const old = connect({ port: client.socket.remotePort ?? 0, host: "127.0.0.1" });
      const reader = new Reader(old);
      await reader.read(18);
      old.write(Buffer.concat([clientFlags(0), option(STARTTLS)]));
      assert.equal((await reader.rest()).length, 0);
      assert.deepEqual(opened, []);
      await untilEmpty(server);
    }));

  test("data in the option that starts tls is refused, and the connection stays in step", () =>
    withServer(async ({ plain, ask }) => {
      const client = await plain();
      assert.equal(await ask(client, STARTTLS, Buffer.from("x")), INVALID);
      assert.equal(await ask(client, STARTTLS), ACK);
    }));

  for (const [name, injected] of [
    ["an option", option(GO, infoData("disk"))],
    ["half an option", option(LIST).subarray(0, 7)],
    ["a request", request({ type: 0, length: 4096, cookie: 1n })],
  ] as const) {
    test(`${name} sent in clear behind the wish for tls never takes effect`, () =>
      withServer(async ({ plain, opened, server, log }) => {
        for (const separate of [false, true]) {
          const client = await plain();
          if (separate) client.socket.write(option(STARTTLS));
          else client.socket.write(Buffer.concat([option(STARTTLS), injected]));
          if (separate) {
            await client.reader.read(20);
            client.socket.write(injected);
            client.socket.end();
          }
          const rest = await client.reader.rest();
          assert.ok(!rest.includes("NBDMAGIC") && !rest.includes(Buffer.from("0003e889045565a9", "hex")));
          await untilEmpty(server);
        }
        assert.deepEqual(opened, []);
        assert.match(log.lines.join("\n"), /handshake refused/);
      }));
  }
});

describe("who is let in", () => {
  test("a client with a certificate of the authority, by tls 1.3, whose data goes both ways in pieces of any size", () =>
    withServer(async ({ secret, released, server }) => {
      const client = await secret();
      assert.equal(client.socket.getProtocol(), "TLSv1.3");
      await go(client);
      const content = new SeededRandom(3).bytes(4 * MIB);
      const bytes = Buffer.concat([
        request({ type: 1, offset: 4096n, payload: content, cookie: 1n }),
        request({ type: 0, offset: 4096n, length: content.length, cookie: 2n }),
      ]);
      for (let at = 0; at < bytes.length; at += 99_991) client.socket.write(bytes.subarray(at, at + 99_991));
      const answer = await client.reader.read(32 + content.length);
      assert.ok(replies(answer, new Map([[2n, content.length]]))[1]?.payload.equals(content));
      client.socket.destroy();
      await untilEmpty(server);
      assert.equal(released(), 1);
    }));

  test("tls is started once", () =>
    withServer(async ({ secret, ask }) => {
      const client = await secret();
      assert.equal(await ask(client, STARTTLS), INVALID);
      await go(client);
    }));

  const turnedAway: readonly [string, () => Promise<ConnectionOptions>][] = [
    ["without a certificate", async () => ({})],
    ["with a certificate of another authority", () => pem(certificates.foreign)],
    ["with a certificate that is over", () => pem(certificates.expired)],
    ["with a server's certificate", () => pem(certificates.wrongUse)],
    ["by tls 1.2", async () => ({ ...(await pem(certificates.client)), maxVersion: "TLSv1.2" })],
  ];
  for (const [name, options] of turnedAway) {
    test(`nobody ${name}`, () =>
      withServer(async ({ secret, opened, server, log }) => {
        await assert.rejects(
          async () => {
            // A client of tls 1.3 learns from its first read that it was not let in.
            const client = await secret(await options());
            await go(client);
          },
          (error: Error) => !/deepEqual/.test(error.message),
        );
        await untilEmpty(server);
        assert.deepEqual(opened, []);
        assert.match(log.lines.join("\n"), /handshake refused.*no tls with this client/);
      }));
  }

  test("a certificate that is replaced is what the next client sees", async () => {
    const certFile = join(directory, "replaced.pem");
    const keyFile = join(directory, "replaced.key");
    const install = async (from: Certificates["server"]): Promise<void> => {
      await copyFile(from.certFile, certFile);
      await copyFile(from.keyFile, keyFile);
    };
    await install(certificates.server);
    await withServer(
      async ({ secret }) => {
        assert.equal((await secret()).socket.getPeerCertificate().subject.CN, "server");
        await install(certificates.wrongUse);
        assert.equal((await secret()).socket.getPeerCertificate().subject.CN, "wrong-use");
      },
      { certFile, keyFile },
    );
  });

  test("files that are missing, no certificates, or do not belong together are refused when the server starts", async () => {
    const { server, client, caFile } = certificates;
    for (const files of [
      { ...server, caFile: join(directory, "missing.pem") },
      { certFile: server.keyFile, keyFile: server.keyFile, caFile },
      { certFile: server.certFile, keyFile: client.keyFile, caFile },
      { ...server, caFile: server.keyFile },
    ]) {
      const nbd = new NbdServer({
        source: { list: () => [], open: async () => undefined },
        clock: systemClock,
        log: new RecordingLog(),
      });
      const listening = nbd.listen({ host: "127.0.0.1", port: 0, tls: files });
      await assert.rejects(listening, (error) => isKind(error, "invalid") && !/PRIVATE KEY|BEGIN/.test(error.message));
      await nbd.close();
    }
  });

  test("a client that stops in the midst of tls is cut off by the same deadline as any handshake", async () => {
    const deadlines: (() => void)[] = [];
    const clock: Clock = {
      ...systemClock,
      after: (_ms, callback) => {
        deadlines.push(callback);
        return { cancel: () => void deadlines.splice(deadlines.indexOf(callback), 1) };
      },
    };
    await withServer(
      async ({ plain, ask, server }) => {
        const client = await plain();
        assert.equal(await ask(client, STARTTLS), ACK);
        client.socket.write(Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00]));
        assert.equal(deadlines.length, 1);
        deadlines[0]?.();
        await client.reader.rest();
        await untilEmpty(server);
      },
      { clock },
    );
  });
});

describe("served by another thread", () => {
  /** Serves what it is given by number, as a thread does. */
  function elsewhere(device: MemoryDevice): ServedVolume["serve"] {
    return async ({ fd, received }): Promise<ServedConnection> => {
      const transmission = new Transmission(connectionOfFd(fd), device, { leftover: Buffer.from(received) });
      return {
        closed: transmission.closed.then(({ reason }) => reason),
        drain: () => transmission.drain(),
        destroy: () => transmission.destroy(),
      };
    };
  }

  async function withThread(run: (bench: Bench) => Promise<void>): Promise<void> {
    const transmit = transmitElsewhere(await loadLibc());
    const serve = elsewhere(new MemoryDevice({ sizeBytes: 64 * MIB }));
    const volume = { serve } as ServedVolume;
    await withServer(run, {
      transmit: (connection, negotiated) => {
        const handle: VolumeExport = { ...negotiated.handle, volume };
        return transmit(connection, { ...negotiated, handle });
      },
    });
  }

  test("requests sent together with GO, and megabytes either way, pass between client and thread", () =>
    withThread(async ({ secret }) => {
      const client = await secret();
      const content = new SeededRandom(5).bytes(8 * MIB);
      client.socket.write(
        Buffer.concat([
          option(GO, infoData("disk")),
          request({ type: 1, payload: content, cookie: 1n }),
          request({ type: 0, length: content.length, cookie: 2n }),
        ]),
      );
      await client.reader.read(86);
      const answer = await client.reader.read(32 + content.length);
      assert.ok(replies(answer, new Map([[2n, content.length]]))[1]?.payload.equals(content));
    }));

  test("a client that says good-bye or breaks the protocol is gone, and its export released", () =>
    withThread(async ({ secret, server, released }) => {
      for (const last of [request({ type: 2, cookie: 9n }), request({ magic: 1, type: 0, cookie: 9n })]) {
        const client = await secret();
        await go(client);
        client.socket.write(last);
        await client.reader.rest();
        await untilEmpty(server);
      }
      assert.equal(released(), 2);
    }));

  test("one that shuts down its side still gets its answers", () =>
    withThread(async ({ secret, server }) => {
      const client = await secret();
      await go(client);
      client.socket.end(request({ type: 0, length: 8 * MIB, cookie: 1n }));
      assert.equal((await client.reader.read(16 + 8 * MIB)).length, 16 + 8 * MIB);
      await client.reader.rest();
      await untilEmpty(server);
    }));

  test("a client that vanishes, or never reads, holds nothing once the server closes", () =>
    withThread(async ({ secret, server, released }) => {
      const vanishing = await secret();
      await go(vanishing);
      vanishing.socket.destroy();
      await untilEmpty(server);
      const broken = await secret();
      await go(broken);
      broken.raw.resetAndDestroy();
      await untilEmpty(server);
      const deaf = await secret();
      await go(deaf);
      deaf.socket.pause();
      for (let cookie = 0n; cookie < 32n; cookie += 1n) {
        deaf.socket.write(request({ type: 0, length: 8 * MIB, cookie }));
      }
      await server.close(0);
      assert.equal(server.connectionCount, 0);
      assert.equal(released(), 3);
    }));
});

test("a flood of clients that never finish tls leaves room for others once they are gone", () =>
  withServer(
    async ({ plain, ask, secret, server }) => {
      const idle = [];
      for (let index = 0; index < 4; index += 1) {
        const client = await plain();
        await ask(client, STARTTLS);
        idle.push(client);
      }
      await assert.rejects(plain());
      for (const { socket } of idle) socket.destroy();
      await untilEmpty(server);
      await go(await secret());
    },
    { connectionLimit: 4 },
  ));
