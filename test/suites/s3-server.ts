/**
 * A real S3 server for tests and benchmarks: versitygw over a directory, on loopback, ended with stop().
 * test/install/s3-server.sh builds it once; the first test that needs it does so where that has not been run.
 */
import { spawn, type ChildProcess, execFile } from "node:child_process";
import { once } from "node:events";
import { access, mkdir, mkdtemp, rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

const repository = join(import.meta.dirname, "../..");
const program = join(repository, ".cache/bin/versitygw");
const accessKeyId = "test-access-key";
const secretAccessKey = "test-secret-access-key";

export interface S3ServerOptions {
  /** Directory that holds the buckets; default a temporary one that stop() removes. */
  root?: string;
  /** Default: one that is free. */
  port?: number;
  /** PEM files, for https. */
  tls?: { certificateFile: string; keyFile: string };
}

export interface S3Server {
  /** http(s)://127.0.0.1:port */
  endpoint: string;
  port: number;
  /** Made at the start, empty unless it was there. */
  bucket: string;
  accessKeyId: string;
  secretAccessKey: string;
  /** Directory of the buckets. */
  root: string;
  stop(): Promise<void>;
}

/** Builds the server, some minutes long, where no earlier installation left it. */
async function installS3Server(): Promise<void> {
  await promisify(execFile)("bash", [join(repository, "test/install/s3-server.sh")]);
}

export async function startS3Server(options: S3ServerOptions = {}): Promise<S3Server> {
  await access(program).catch(() => installS3Server());
  const root = options.root ?? (await mkdtemp(join(tmpdir(), "s3block-s3-")));
  const bucket = "test-bucket";
  await mkdir(join(root, bucket), { recursive: true });
  const port = options.port ?? (await freePort());
  const child = launch(root, port, options);
  try {
    await untilListening(child, port);
  } catch (error) {
    await end(child);
    throw error;
  }
  return {
    endpoint: `${options.tls === undefined ? "http" : "https"}://127.0.0.1:${port}`,
    port,
    bucket,
    accessKeyId,
    secretAccessKey,
    root,
    async stop() {
      await end(child);
      if (options.root === undefined) await rm(root, { recursive: true, force: true });
    },
  };
}

function launch(root: string, port: number, options: S3ServerOptions): ChildProcess {
  const tls = options.tls === undefined ? [] : ["--cert", options.tls.certificateFile, "--key", options.tls.keyFile];
  return spawn(program, ["--port", `127.0.0.1:${port}`, "--keep-alive", "--quiet", ...tls, "posix", root], {
    env: { ROOT_ACCESS_KEY: accessKeyId, ROOT_SECRET_KEY: secretAccessKey },
    stdio: ["ignore", "ignore", "pipe"],
  });
}

async function untilListening(child: ChildProcess, port: number): Promise<void> {
  let said = "";
  child.stderr?.on("data", (chunk: Buffer) => (said = (said + chunk.toString()).slice(-2000)));
  while (!(await accepts(port))) {
    if (child.exitCode !== null || child.signalCode !== null) throw new Error(`the S3 server ended: ${said}`);
    await sleep(20);
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}
