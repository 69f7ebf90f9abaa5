/**
 * What went wrong with an S3 request, as one of the project's error kinds and in words that tell the operator what to
 * do. Built from the error code and status of the answer alone: messages of the server are not repeated, because they
 * may quote the request (signature, key id).
 *
 * A refusal for credentials or permissions is "invalid" at first, and "unavailable" once the same operation has
 * worked: then a key was rotated or a policy changed, which people repair while writers wait.
 */
import { type ErrorContext, type ErrorKind, OperationError } from "../base/errors.ts";
import { TemporaryRefusal } from "./temporary-refusal.ts";

export interface FailedRequest {
  operation: "put" | "get" | "list" | "delete";
  bucket: string;
  endpoint: string;
  key?: string;
  /** This operation has succeeded before on this store. */
  hasWorked: boolean;
}

/** The parts of an SDK error that are looked at; every one may be missing on a network error. */
export interface S3Failure {
  name?: string;
  code?: string;
  $metadata?: { httpStatusCode?: number; requestId?: string | undefined };
  $response?: { headers?: Record<string, string> };
}

type Verdict = readonly [kind: ErrorKind | "refused", advice: string];

const CHECK_KEYS = "check the access key and the secret in the store's credentials";
const SET_REGION = "the bucket lives in another region: set the store's region to the bucket's";

const BY_CODE: Readonly<Record<string, Verdict>> = {
  NoSuchBucket: ["not-found", "the bucket does not exist: create it, or correct the store's URL and endpoint"],
  InvalidBucketName: ["invalid", "the bucket name is not valid: correct the store's URL"],
  AccessDenied: [
    "refused",
    "access denied: allow these credentials to get, put, list and delete objects of the bucket (s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket)",
  ],
  AllAccessDisabled: ["refused", "the bucket is disabled: ask its owner"],
  InvalidAccessKeyId: ["refused", `the store does not know this access key: ${CHECK_KEYS}`],
  XAdminUserNotFound: ["refused", `the store does not know this access key: ${CHECK_KEYS}`],
  SignatureDoesNotMatch: ["refused", `the signature does not match: ${CHECK_KEYS}`],
  InvalidSecurity: ["refused", `the store refuses these credentials: ${CHECK_KEYS}`],
  InvalidToken: ["refused", "the session token is not valid: renew the store's credentials"],
  ExpiredToken: ["refused", "the session token has expired: renew the store's credentials"],
  TokenRefreshRequired: ["refused", "the session token has expired: renew the store's credentials"],
  CredentialsProviderError: [
    "refused",
    "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a credentials file",
  ],
  RequestTimeTooSkewed: [
    "unavailable",
    "this machine's clock and the store's differ by more than 15 minutes: set this machine's clock",
  ],
  PermanentRedirect: ["invalid", SET_REGION],
  AuthorizationHeaderMalformed: ["invalid", SET_REGION],
  IllegalLocationConstraintException: ["invalid", SET_REGION],
  NotImplemented: ["invalid", "the store does not implement this request"],
  EntityTooLarge: ["invalid", "the object is larger than the store accepts: choose a smaller segment size"],
  KeyTooLongError: ["invalid", "the object's key is longer than the store accepts: choose a shorter prefix"],
  XMinioStorageFull: ["unavailable", "the store is full: free or add space there"],
  QuotaExceeded: ["unavailable", "the store's quota is used up: free space or raise the quota"],
  InsufficientStorage: ["unavailable", "the store is full: free or add space there"],
  SlowDown: ["unavailable", "the store asks for fewer requests"],
  Throttling: ["unavailable", "the store asks for fewer requests"],
  ThrottlingException: ["unavailable", "the store asks for fewer requests"],
  TooManyRequests: ["unavailable", "the store asks for fewer requests"],
  RequestTimeout: ["unavailable", "the store did not get the whole request in time"],
  BadDigest: ["unavailable", "the body was damaged on its way to the store"],
  ConditionalRequestConflict: ["unavailable", "another request for the same key is under way"],
  OperationAborted: ["unavailable", "another request for the same key is under way"],
  ENOTFOUND: ["unavailable", "the endpoint's host name does not resolve: check the store's endpoint and DNS"],
  EAI_AGAIN: ["unavailable", "the endpoint's host name could not be resolved: check DNS"],
  ECONNREFUSED: ["unavailable", "nothing listens at the endpoint: check the store's endpoint and that it runs"],
  ECONNRESET: ["unavailable", "the connection was lost"],
  EPIPE: ["unavailable", "the connection was lost"],
  ETIMEDOUT: ["unavailable", "the connection timed out"],
  EHOSTUNREACH: ["unavailable", "the endpoint cannot be reached: check the network"],
  ENETUNREACH: ["unavailable", "the endpoint cannot be reached: check the network"],
  TimeoutError: ["unavailable", "the store did not answer in time"],
  AbortError: ["unavailable", "store request was given up"],
  ERR_TLS_CERT_ALTNAME_INVALID: ["invalid", "the endpoint's certificate is for another host name"],
  CERT_HAS_EXPIRED: ["invalid", "the endpoint's certificate has expired: renew it"],
  EPROTO: ["invalid", "the endpoint does not speak TLS: check whether it is http or https"],
};

const UNTRUSTED = new Set([
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
]);

const THROTTLED = new Set(["SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"]);

/** The HTTP status of the answer, or 0 where there was none. */
export function statusOf(error: unknown): number {
  return asFailure(error).$metadata?.httpStatusCode ?? 0;
}

/** True where the store is well and only asks for less: no reason to leave its endpoint alone. */
export function isThrottling(error: unknown): boolean {
  return statusOf(error) === 429 || THROTTLED.has(asFailure(error).name ?? "");
}

/** True where the answer to a conditional put says that the key is taken. Old MinIO answered 304. */
export function saysExists(error: unknown): boolean {
  const status = statusOf(error);
  return status === 412 || status === 304 || asFailure(error).name === "PreconditionFailed";
}

/** The project's error for a failed request. */
export function s3Error(error: unknown, request: FailedRequest): OperationError {
  if (error instanceof OperationError) return error;
  const failure = asFailure(error);
  const [kind, advice] = verdictOf(failure, request);
  const status = statusOf(error);
  const known = failure.name === undefined || failure.name === "Error" ? failure.code : failure.name;
  const requestId = failure.$metadata?.requestId;
  const context: ErrorContext = {
    ...(known === undefined ? {} : { code: safe(known) }),
    ...(status === 0 ? {} : { status }),
    bucket: request.bucket,
    ...(request.key === undefined ? {} : { key: request.key }),
    endpoint: request.endpoint,
    ...(requestId === undefined ? {} : { requestId: safe(requestId) }),
  };
  const message = `S3 ${request.operation} failed: ${advice}`;
  // A 503 without a code is how proxies and older stores say that they have too much to do.
  if (isThrottling(error) || status === 503) return new TemporaryRefusal("slow-down", message, context);
  if (status === 409 && kind === "unavailable") return new TemporaryRefusal("conflict", message, context);
  return new OperationError(kind === "refused" ? (request.hasWorked ? "unavailable" : "invalid") : kind, message, {
    context,
  });
}

function verdictOf(failure: S3Failure, request: FailedRequest): Verdict {
  const status = failure.$metadata?.httpStatusCode ?? 0;
  if (request.operation === "put" && status === 501) {
    return [
      "invalid",
      "the store has no conditional writes (If-None-Match), which keep two writers apart: use a store that has them",
    ];
  }
  for (const code of [failure.name, failure.code]) {
    if (code !== undefined && Object.hasOwn(BY_CODE, code)) return BY_CODE[code];
    if (code !== undefined && UNTRUSTED.has(code)) {
      return ["invalid", "the endpoint's certificate is not trusted: name its CA in the store's CA file"];
    }
  }
  if (status === 0 || status >= 500 || status === 408 || status === 429 || status === 409) {
    return ["unavailable", status === 0 ? "the connection failed" : "the store has a fault"];
  }
  if (status === 401 || status === 403) return BY_CODE["AccessDenied"];
  if (status === 301 || status === 307) return BY_CODE["PermanentRedirect"];
  if (status === 404)
    return ["not-found", "the bucket or endpoint does not exist: correct the store's URL and endpoint"];
  if (status >= 400) return ["invalid", "the store refuses the request: see its code and request id"];
  return ["corrupt", "the store's answer makes no sense"];
}

function asFailure(error: unknown): S3Failure {
  return typeof error === "object" && error !== null ? error : {};
}

/** Codes and ids come from the network: short and plain, or left out. */
function safe(text: string): string {
  return /^[\w.+/=:-]{1,100}$/.test(text) ? text : "unreadable";
}
