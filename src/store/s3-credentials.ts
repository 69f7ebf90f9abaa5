/**
 * Where the S3 client gets its keys: given outright, from the environment and the usual chain of the SDK, or from a
 * file that is read again when it changes (a mounted Secret that is rotated). Secrets never enter a message: errors
 * name the file and what is missing in it, never what stands there.
 */
import { readFile, stat } from "node:fs/promises";
import type { Clock } from "../base/clock.ts";
import { asOperationError, OperationError } from "../base/errors.ts";

export interface S3Keys {
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string;
}

export type S3Credentials =
  | ({ kind: "static" } & S3Keys)
  /** Environment variables, shared configuration, web identity, instance metadata: the SDK's own order. */
  | { kind: "default" }
  /** A file in the AWS credentials format; the profile "default" is used, or lines before any profile. */
  | { kind: "file"; path: string };

/** How long a file is believed before it is looked at again. */
const LOOK_AGAIN_MS = 1000;

/** What the SDK asks before every request it signs. An expiry makes it ask again instead of keeping the answer. */
export type KeysProvider = () => Promise<S3Keys & { expiration?: Date }>;

/** The provider for `credentials`; undefined means the SDK's own chain. */
export function keysProvider(credentials: S3Credentials, clock: Clock): KeysProvider | undefined {
  if (credentials.kind === "default") return undefined;
  if (credentials.kind === "file") return new KeysFile(credentials.path, clock).provide;
  const { accessKeyId, secretAccessKey, sessionToken } = credentials;
  return async () => ({ accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) });
}

class KeysFile {
  readonly #path: string;
  readonly #clock: Clock;
  #keys: S3Keys | undefined;
  #version = "";
  #lookedAtMs = -Infinity;

  constructor(path: string, clock: Clock) {
    this.#path = path;
    this.#clock = clock;
  }

  readonly provide: KeysProvider = async () => {
    const nowMs = this.#clock.monotonicMs();
    if (this.#keys === undefined || nowMs - this.#lookedAtMs >= LOOK_AGAIN_MS) {
      await this.#refresh();
      this.#lookedAtMs = nowMs;
    }
    if (this.#keys === undefined) throw new OperationError("invalid", "no S3 credentials were read");
    return { ...this.#keys, expiration: new Date(this.#clock.now() + LOOK_AGAIN_MS) };
  };

  /** Keeps the former keys while a new file is missing or half written. */
  async #refresh(): Promise<void> {
    try {
      const { ino, mtimeMs, size } = await stat(this.#path);
      const version = `${ino}:${mtimeMs}:${size}`;
      if (version === this.#version) return;
      this.#keys = parseKeys(await readFile(this.#path, "utf8"), this.#path);
      this.#version = version;
    } catch (error) {
      if (this.#keys !== undefined) return;
      throw asOperationError(error, "invalid", "cannot read the S3 credentials file");
    }
  }
}

/** Parses the AWS credentials format; names are taken in either case, so that lines of an environment file serve. */
export function parseKeys(text: string, path: string): S3Keys {
  const values = new Map<string, string>();
  let profile = "default";
  for (const line of text.split(/\r?\n/)) {
    const header = /^\s*\[\s*(?:profile\s+)?([^\]]*?)\s*\]\s*$/.exec(line);
    if (header !== null) profile = header[1];
    const pair = /^\s*([A-Za-z_]+)\s*=\s*(\S+)\s*$/.exec(line);
    if (pair !== null && profile === "default") values.set(pair[1].toLowerCase(), pair[2]);
  }
  const accessKeyId = values.get("aws_access_key_id");
  const secretAccessKey = values.get("aws_secret_access_key");
  const sessionToken = values.get("aws_session_token");
  if (accessKeyId === undefined || secretAccessKey === undefined) {
    const missing = accessKeyId === undefined ? "aws_access_key_id" : "aws_secret_access_key";
    throw new OperationError("invalid", `S3 credentials file has no ${missing} in its default profile`, {
      context: { path },
    });
  }
  return { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) };
}
