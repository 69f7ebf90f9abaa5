/**
 * What a store's URL and endpoints may be, and what they name. Loads nothing of any store, so that a mistake is told
 * before anything is started.
 *
 *   s3://bucket/prefix   S3 or what speaks its protocol
 *   file:///directory    a local or shared directory
 *   memory:              gone with the process, for tests
 */
import { fileURLToPath } from "node:url";
import { OperationError } from "../base/errors.ts";
import { isKeyOrEmpty } from "./object-key.ts";

export type StorePlace =
  | { kind: "s3"; bucket: string; prefix: string }
  | { kind: "directory"; path: string }
  | { kind: "memory" };

/** Throws "invalid" for everything that is none of the three. */
export function parseStoreUrl(text: string): StorePlace {
  if (!URL.canParse(text) || (/^file:/i.test(text) && !text.startsWith("file:///"))) throw badUrl(text);
  const url = new URL(text);
  switch (url.protocol) {
    case "memory:":
      return { kind: "memory" };
    case "file:":
      if (url.pathname === "/") throw badUrl(text);
      return { kind: "directory", path: fileURLToPath(url) };
    case "s3:": {
      const prefix = url.pathname.replace(/^\/|\/$/g, "");
      const isPlain = url.search === "" && url.hash === "" && url.username === "" && url.port === "";
      if (!isBucketName(url.hostname) || !isKeyOrEmpty(prefix) || !isPlain) throw badUrl(text);
      return { kind: "s3", bucket: url.hostname, prefix };
    }
    default:
      throw badUrl(text);
  }
}

/** What some store somewhere takes for a bucket's name; it becomes a part of URLs, so nothing that means more there. */
function isBucketName(text: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$/.test(text) && !text.includes("..");
}

/** Throws "invalid" for what is no plain http(s) URL. */
export function parseEndpoint(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const isPlain = url !== undefined && url.username === "" && url.password === "" && url.search === "";
  if (isPlain && (url.protocol === "http:" || url.protocol === "https:")) return url;
  throw new OperationError(
    "invalid",
    "an S3 endpoint is a URL such as https://s3.example.com:9000, with no more in it",
  );
}

/** The URL is not repeated: somebody may have put a secret into it. */
function badUrl(text: string): OperationError {
  const scheme = /^[a-z0-9]{1,10}:/.exec(text)?.[0] ?? "none";
  return new OperationError(
    "invalid",
    "the store's URL must be s3://bucket or s3://bucket/prefix (letters, digits, . _ - =), file:///directory, or memory:",
    { context: { scheme } },
  );
}
