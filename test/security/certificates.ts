/**
 * Certificates for tests, made by openssl(1): two authorities, a server's, and clients' of every kind that must be let in
 * or turned away. Names of the files are those that libnbd and qemu look for, so that a folder can be given to them.
 */
import { execFile } from "node:child_process";
import { copyFile, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const openssl = (args: readonly string[]): Promise<unknown> => promisify(execFile)("openssl", args);
const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

export interface Identity {
  certFile: string;
  keyFile: string;
}

export interface Certificates {
  /** The authority that everybody is told to trust. */
  caFile: string;
  server: Identity;
  client: Identity;
  /** Signed by the authority, but of a server, and long over. */
  wrongUse: Identity;
  expired: Identity;
  /** Signed by another authority of the same name. */
  foreign: Identity;
  /** ca-cert.pem, client-cert.pem and client-key.pem. */
  clientDirectory: string;
}

export async function makeCertificates(directory: string): Promise<Certificates> {
  const own = await authority(directory, "ca");
  const other = await authority(directory, "other-ca");
  const make = (signer: Identity, name: string, use: "serverAuth" | "clientAuth"): Promise<Identity> =>
    signed(directory, { signer, name, use });
  const client = await make(own, "client", "clientAuth");
  const clientDirectory = join(directory, "client");
  await mkdir(clientDirectory);
  await copyFile(own.certFile, join(clientDirectory, "ca-cert.pem"));
  await copyFile(client.certFile, join(clientDirectory, "client-cert.pem"));
  await copyFile(client.keyFile, join(clientDirectory, "client-key.pem"));
  return {
    caFile: own.certFile,
    server: await make(own, "server", "serverAuth"),
    client,
    wrongUse: await make(own, "wrong-use", "serverAuth"),
    expired: await expired(directory, own),
    foreign: await make(other, "foreign", "clientAuth"),
    clientDirectory,
  };
}

/** What node:tls takes. */
export async function pem({ certFile, keyFile }: Identity): Promise<{ cert: Buffer; key: Buffer }> {
  return { cert: await readFile(certFile), key: await readFile(keyFile) };
}

function files(directory: string, name: string): Identity {
  return { certFile: join(directory, `${name}.pem`), keyFile: join(directory, `${name}.key`) };
}

async function authority(directory: string, name: string): Promise<Identity> {
  const { certFile, keyFile } = files(directory, name);
  await openssl(["req", "-x509", ...newKey, "-keyout", keyFile, "-out", certFile, "-subj", "/CN=test", "-days", "2"]);
  return { certFile, keyFile };
}

async function signed(
  directory: string,
  options: { signer: Identity; name: string; use: "serverAuth" | "clientAuth" },
): Promise<Identity> {
  const { signer, name, use } = options;
  const { certFile, keyFile } = files(directory, name);
  const extensions = [
    "basicConstraints=critical,CA:FALSE",
    `extendedKeyUsage=${use}`,
    "subjectAltName=DNS:localhost,IP:127.0.0.1",
  ].flatMap((extension) => ["-addext", extension]);
  const signing = ["-CA", signer.certFile, "-CAkey", signer.keyFile, "-days", "2", ...extensions];
  const output = ["-keyout", keyFile, "-out", certFile];
  await openssl(["req", "-x509", ...newKey, ...output, "-subj", `/CN=${name}`, ...signing]);
  return { certFile, keyFile };
}

async function expired(directory: string, signer: Identity): Promise<Identity> {
  const { certFile, keyFile } = files(directory, "expired");
  const request = join(directory, "expired.csr");
  await openssl(["req", "-new", ...newKey, "-keyout", keyFile, "-out", request, "-subj", "/CN=expired"]);
  const signing = ["-CA", signer.certFile, "-CAkey", signer.keyFile, "-days", "-1"];
  await openssl(["x509", "-req", "-in", request, "-out", certFile, ...signing]);
  return { certFile, keyFile };
}
