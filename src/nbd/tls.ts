/**
 * TLS for NBD over TCP: version 1.3 alone, and only with clients whose certificate the given authority has signed.
 * The files are read for every connection, so that certificates are replaced without a restart; no session is resumed.
 *
 * A connection that is not let in rejects with "invalid"; the messages name files and reasons, never what stands in a key.
 * It must never hand out a connection whose peer was not verified.
 */
import { X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { createSecureContext, createServer } from "node:tls";
import type { TLSSocket } from "node:tls";
import { describe, OperationError } from "../base/errors.ts";

/** Paths of PEM files. */
export interface TlsFiles {
  /** The server's certificate, with those between it and its authority. */
  certFile: string;
  keyFile: string;
  /** Authorities that sign clients' certificates. */
  caFile: string;
}

interface TlsMaterial {
  cert: Buffer;
  key: Buffer;
  ca: Buffer;
}

/** Throws "invalid" where a file cannot be read or key and certificate do not belong together. */
export async function checkTlsFiles(files: TlsFiles): Promise<void> {
  await readMaterial(files);
}

/** The server's side of TLS on a connected, paused socket, which it takes over. Resolves with a verified client alone. */
export async function startTlsOn(socket: Socket, files: TlsFiles): Promise<TLSSocket> {
  const material = await readMaterial(files);
  const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
  const refuse = (reason: string): void => reject(new OperationError("invalid", `no tls with this client: ${reason}`));
  const gone = (): void => refuse("it closed the connection");
  const { allowHalfOpen } = socket;
  // A client that closes its side before TLS stands would else be waited for.
  socket.allowHalfOpen = false;
  const options = { ...material, minVersion: "TLSv1.3", requestCert: true, rejectUnauthorized: true } as const;
  const server = createServer(options, resolve);
  server.on("tlsClientError", (error) => {
    refuse(describe(error));
    socket.destroy();
  });
  socket.once("close", gone);
  if (socket.destroyed) gone();
  else server.emit("connection", socket);
  try {
    const secured = await promise;
    secured.allowHalfOpen = allowHalfOpen;
    return secured;
  } finally {
    socket.off("close", gone);
  }
}

async function readMaterial(files: TlsFiles): Promise<TlsMaterial> {
  const [cert, key, ca] = await Promise.all([files.certFile, files.keyFile, files.caFile].map(read));
  try {
    createSecureContext({ cert, key, ca });
    // A file without an authority would pass for one that has signed nobody's certificate.
    new X509Certificate(ca);
  } catch (cause) {
    throw new OperationError("invalid", `certificate, key and authority do not fit together: ${describe(cause)}`, {
      cause,
      context: { ...files },
    });
  }
  return { cert, key, ca };
}

async function read(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new OperationError("invalid", `a file for tls cannot be read (${describe(cause)})`, {
      cause,
      context: { path },
    });
  }
}
