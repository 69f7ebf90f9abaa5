/**
 * CSI services on a unix socket. Around every call: the answer of an error (status.ts), one log line with operation,
 * volume, duration and code, and no secret in either. Handlers are plain asynchronous functions of a request.
 * - A handler runs to its end even where its client has gone: it holds the operation lock until then.
 * - The socket belongs to its owner alone (0600). A file left behind by a process that died is replaced; the socket
 *   of a process that still answers never is.
 */
import { lstat, mkdir, rm } from "node:fs/promises";
import { connect } from "node:net";
import { dirname } from "node:path";
import {
  type handleUnaryCall,
  type sendUnaryData,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServiceDefinition,
  status as code,
  type UntypedServiceImplementation,
} from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { CallLimit } from "../attachment/call-limit.ts";
import type { Clock } from "../base/clock.ts";
import { OperationError } from "../base/errors.ts";
import type { Log, LogFields } from "../base/log.ts";
import type { TextMap } from "./messages.ts";
import { type CallStatus, describeWithoutSecrets, statusOfError } from "./status.ts";

const protoPath = new URL("../../proto/csi.proto", import.meta.url).pathname;
const maxConcurrentCalls = 256;
const maxMessageBytes = 4 * 1024 * 1024;
const closeGraceMs = 5000;

export type ServiceName = "Identity" | "Controller" | "Node";
interface AnyHandler {
  /** A method and no function property: so each service may name the request it takes. */
  handle(request: object): Promise<object>;
}
/** By the names of the service's methods in camelCase. */
export type Handlers = Readonly<Record<string, AnyHandler["handle"]>>;

export interface GrpcServerOptions {
  socketPath: string;
  services: Readonly<Partial<Record<ServiceName, Handlers>>>;
  log: Log;
  clock: Clock;
  /** Calls at work at the same time; default 256. */
  callLimit?: number;
}

export interface GrpcServer {
  /** Takes no new call, lets those at work end for a moment, removes the socket. Idempotent. */
  close(): Promise<void>;
}

/** The services of csi.proto by their short names. */
export function loadCsiServices(): Record<ServiceName, ServiceDefinition> {
  const definitions = loadSync(protoPath, { longs: String, enums: String, defaults: true, oneofs: true });
  const service = (name: string): ServiceDefinition => definitions[`csi.v1.${name}`] as ServiceDefinition;
  return { Identity: service("Identity"), Controller: service("Controller"), Node: service("Node") };
}

/**
 * Serves until closed. Calls beyond the limit are "busy", except those of Identity: a probe must not fail of load.
 * Errors: "conflict" where another process serves the socket, "unavailable" where it cannot be made.
 */
export async function serveCsi(options: GrpcServerOptions): Promise<GrpcServer> {
  const server = new Server({
    "grpc.max_receive_message_length": maxMessageBytes,
    "grpc.max_concurrent_streams": maxConcurrentCalls,
  });
  const definitions = loadCsiServices();
  const limit = new CallLimit(options.callLimit ?? maxConcurrentCalls);
  for (const [name, handlers] of Object.entries(options.services)) {
    const implementation: UntypedServiceImplementation = {};
    for (const [method, handler] of Object.entries(handlers)) {
      const limited = (request: object): Promise<object> => limit.run(() => handler(request));
      implementation[method] = unaryHandler(method, name === "Identity" ? handler : limited, options);
    }
    server.addService(definitions[name as ServiceName], implementation);
  }
  await freeSocket(options.socketPath);
  await bind(server, options.socketPath);
  let closed: Promise<void> | undefined;
  return { close: () => (closed ??= shutDown(server, options.clock)) };
}

interface AnyRequest {
  volumeId?: string;
  name?: string;
  nodeId?: string;
  secrets?: TextMap;
}

function unaryHandler(
  method: string,
  handler: (request: object) => Promise<object>,
  options: GrpcServerOptions,
): handleUnaryCall<AnyRequest, object> {
  const operation = `${method[0].toUpperCase()}${method.slice(1)}`;
  const answer = async (call: ServerUnaryCall<AnyRequest, object>, callback: sendUnaryData<object>): Promise<void> => {
    const startMs = options.clock.monotonicMs();
    const log = options.log.child({ operation, ...identifyingFields(call.request) });
    let response: object;
    try {
      response = await handler(call.request);
    } catch (error) {
      const secrets = Object.values(call.request.secrets ?? {});
      const status = statusOfError(error, secrets);
      logFailure(log, error, { status, secrets, durationMs: elapsed(options.clock, startMs) });
      callback(status);
      return;
    }
    logCall(log, operation, { code: "OK", durationMs: elapsed(options.clock, startMs) });
    callback(null, response);
  };
  return (call, callback) => void answer(call, callback);
}

/** Quiet calls come every few seconds and change nothing. */
const quietPattern = /^(Probe|Get|NodeGet|ControllerGet|ListVolumes|ValidateVolume)/;

function logCall(log: Log, operation: string, fields: LogFields): void {
  if (quietPattern.test(operation)) log.debug("call answered", fields);
  else log.info("call answered", fields);
}

function logFailure(
  log: Log,
  error: unknown,
  call: { status: CallStatus; secrets: readonly string[]; durationMs: number },
): void {
  const fields = {
    code: code[call.status.code],
    durationMs: call.durationMs,
    error: describeWithoutSecrets(error, call.secrets),
  };
  if (error instanceof OperationError) {
    log.warn("call failed", fields);
    return;
  }
  const stack = error instanceof Error ? error.stack : undefined;
  log.error("call failed unexpectedly", { ...fields, stack: describeWithoutSecrets(stack, call.secrets) });
}

/** Fields that say what a call is about; maps, paths and capabilities stay out: they may hold secrets. */
function identifyingFields(request: AnyRequest): LogFields {
  const fields: Record<string, string> = {};
  for (const key of ["volumeId", "name", "nodeId"] as const) {
    const value = request[key];
    if (value !== undefined && value !== "") fields[key] = value.slice(0, 256);
  }
  return fields;
}

function elapsed(clock: Clock, startMs: number): number {
  return Math.round(clock.monotonicMs() - startMs);
}

/** Removes what a dead process left behind. */
async function freeSocket(socketPath: string): Promise<void> {
  await mkdir(dirname(socketPath), { recursive: true, mode: 0o700 });
  const found = await lstat(socketPath).catch(() => undefined);
  if (found === undefined) return;
  if (!found.isSocket()) {
    throw new OperationError("conflict", "the path of the socket holds something else: remove it", {
      context: { socketPath },
    });
  }
  const answers = await new Promise<boolean>((resolve) => {
    const socket = connect(socketPath, () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
  if (answers) {
    throw new OperationError("conflict", "another process serves this socket: stop it first", {
      context: { socketPath },
    });
  }
  await rm(socketPath, { force: true });
}

async function bind(server: Server, socketPath: string): Promise<void> {
  const umask = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), (error) => {
        if (error === null) resolve();
        else
          reject(
            new OperationError("unavailable", "the socket cannot be served", { cause: error, context: { socketPath } }),
          );
      });
    });
  } finally {
    process.umask(umask);
  }
}

async function shutDown(server: Server, clock: Clock): Promise<void> {
  const timer = clock.after(closeGraceMs, () => server.forceShutdown());
  await new Promise<void>((resolve) => {
    server.tryShutdown(() => resolve());
  });
  timer.cancel();
}
