/**
 * One SDK client for one endpoint and one purpose, set up so that it serves any vendor's store and one request is one
 * request: no retries of its own, no checksums where the service does not demand them, bodies neither hashed nor
 * copied. Reads and writes have clients, and so connections, of their own: uploads never make a read wait.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import type { LookupFunction } from "node:net";
import { createSecureContext, getCACertificates, type SecureContext } from "node:tls";
import type { S3Client } from "@aws-sdk/client-s3";
import type { NodeHttpHandler } from "@smithy/node-http-handler";
import { asOperationError } from "../base/errors.ts";
import type { KeysProvider } from "./s3-credentials.ts";

export interface S3Sdk {
  readonly s3: typeof import("@aws-sdk/client-s3");
  readonly http: typeof import("@smithy/node-http-handler");
}

/** The SDK, loaded at the first call: a tenth of a second that a process without a store in S3 need not spend. */
export async function loadS3Sdk(): Promise<S3Sdk> {
  const [s3, http] = await Promise.all([import("@aws-sdk/client-s3"), import("@smithy/node-http-handler")]);
  return { s3, http };
}

/** Idle connections are closed after this time: before most servers and middleboxes would drop them silently. */
const IDLE_CONNECTION_MS = 8000;

export interface S3ClientOptions {
  /** Undefined: the service's own endpoint for the region. */
  endpoint: string | undefined;
  region: string;
  forcePathStyle: boolean;
  /** Undefined: the SDK's own chain. */
  keys: KeysProvider | undefined;
  /** What https trusts, where it is not the system's certificates alone. */
  secureContext: SecureContext | undefined;
  connectTimeoutMs: number;
  connections: number;
  /** Connect to this address whatever the host name resolves to: to reach each address of an endpoint in turn. */
  address: { address: string; family: number } | undefined;
}

/** The parts of the SDK's request that are touched here. */
interface HttpRequest {
  headers: Record<string, string>;
  body: string | Uint8Array;
}

export function makeS3Client({ s3, http }: S3Sdk, options: S3ClientOptions): S3Client {
  const client = new s3.S3Client({
    region: options.region,
    forcePathStyle: options.forcePathStyle,
    ...(options.endpoint === undefined ? {} : { endpoint: options.endpoint }),
    ...(options.keys === undefined ? {} : { credentials: options.keys }),
    requestHandler: makeHandler(http, options),
    maxAttempts: 1,
    retryMode: "standard",
    defaultsMode: "standard",
    expectContinueHeader: false,
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
  });
  // In the place of the SDK's retries: nothing. Its own middleware logs to the console and costs time.
  client.middlewareStack.add((next) => (args) => next(args), {
    step: "finalizeRequest",
    priority: "high",
    name: "retryMiddleware",
    override: true,
  });
  client.middlewareStack.add(
    (next, context) => (args) => {
      const request = args.request as HttpRequest;
      if (context.commandName === "PutObjectCommand") leaveUnsigned(request);
      if (context.commandName === "DeleteObjectsCommand") checkByMd5(request);
      return next(args);
    },
    { step: "build", priority: "low", name: "bodyHeaders" },
  );
  return client;
}

/**
 * Trusts the certificates in a PEM file besides the system's; "invalid" where it cannot be read. One context for all
 * connections: making it parses every certificate of the system, which takes milliseconds.
 */
export function trustAlso(path: string): SecureContext {
  try {
    return createSecureContext({ ca: [...getCACertificates("default"), readFileSync(path, "utf8")] });
  } catch (error) {
    throw asOperationError(error, "invalid", "cannot use the store's CA file");
  }
}

/**
 * The signature then covers the headers alone. Hashing a 32 MiB body costs 20 ms and more of the serving thread, and
 * buys nothing: TLS guards the wire, and the checksums inside our own formats guard the content from end to end.
 */
function leaveUnsigned(request: HttpRequest): void {
  request.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD";
}

/** A batch delete must carry a checksum; MD5 is the one that every vendor's store of every age accepts. */
function checkByMd5(request: HttpRequest): void {
  for (const name of Object.keys(request.headers)) {
    if (/^x-amz-(checksum-|sdk-checksum-)/i.test(name)) delete request.headers[name];
  }
  request.headers["content-md5"] = createHash("md5").update(request.body).digest("base64");
}

function makeHandler(http: S3Sdk["http"], options: S3ClientOptions): NodeHttpHandler {
  const { secureContext } = options;
  const agentOptions = {
    keepAlive: true,
    keepAliveMsecs: 5000,
    maxSockets: options.connections,
    maxFreeSockets: options.connections,
    scheduling: "lifo" as const,
    timeout: IDLE_CONNECTION_MS,
    ...(options.address === undefined ? {} : { lookup: pinnedLookup(options.address) }),
  };
  return new http.NodeHttpHandler({
    connectionTimeout: options.connectTimeoutMs,
    httpAgent: new HttpAgent(agentOptions),
    httpsAgent: new HttpsAgent({ ...agentOptions, ...(secureContext === undefined ? {} : { secureContext }) }),
    socketAcquisitionWarningTimeout: 2 ** 31 - 1,
  });
}

function pinnedLookup(pinned: { address: string; family: number }): LookupFunction {
  return (_hostname, lookupOptions, callback) => {
    if (lookupOptions.all === true) callback(null, [pinned]);
    else callback(null, pinned.address, pinned.family);
  };
}
