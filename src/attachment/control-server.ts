/**
 * The control API's serving end: a DataPlane behind proto/nbd-server.proto on a unix socket that only its owner can
 * open (0600 in a directory of 0700).
 * A call that was begun goes on when its caller gives up; the caller asks again and joins it. Every call is logged
 * with operation, volume, duration and outcome. A stale socket is removed; a live one is refused.
 */
import { chmod, mkdir, rm } from "node:fs/promises";
import { connect } from "node:net";
import { dirname } from "node:path";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import type { sendUnaryData, ServerUnaryCall, UntypedServiceImplementation } from "@grpc/grpc-js";
import type { Clock } from "../base/clock.ts";
import { describe, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { CallLimit } from "./call-limit.ts";
import { encodeError } from "./control-errors.ts";
import { controlService, decodeAttach, decodeVolumeId, encodeAttachment } from "./control-protocol.ts";
import type { AttachMessage, MethodName, VolumeMessage } from "./control-protocol.ts";
import type { DataPlane } from "./data-plane.ts";

const maxConcurrentCalls = 256;

export interface ControlServerOptions {
  socketPath: string;
  dataPlane: DataPlane;
  log: Log;
  clock: Clock;
  /** Calls at work at the same time; one more is "busy". Default 256. */
  callLimit?: number;
}

type Handler = (dataPlane: DataPlane, request: AttachMessage) => Promise<object>;

const handlers: Readonly<Record<MethodName, Handler>> = {
  Attach: async (dataPlane, request) => ({
    attachment: encodeAttachment(await dataPlane.attach(decodeAttach(request))),
  }),
  Detach: async (dataPlane, request) => {
    await dataPlane.detach(decodeVolumeId(request));
    return {};
  },
  GetAttachment: async (dataPlane, request) => {
    const volumeId = decodeVolumeId(request);
    const attachment = await dataPlane.getAttachment(volumeId);
    if (attachment !== undefined) return encodeAttachment(attachment);
    throw new OperationError("not-found", "the volume is not attached here", { context: { volumeId } });
  },
  ListAttachments: async (dataPlane) => ({ attachments: (await dataPlane.listAttachments()).map(encodeAttachment) }),
  Flush: async (dataPlane, request) => {
    await dataPlane.flush(decodeVolumeId(request));
    return {};
  },
};

export class ControlServer {
  readonly #options: ControlServerOptions;
  readonly #server = new Server({
    "grpc.max_receive_message_length": 1024 * 1024,
    "grpc.max_concurrent_streams": maxConcurrentCalls,
  });
  readonly #limit: CallLimit;

  constructor(options: ControlServerOptions) {
    this.#options = options;
    this.#limit = new CallLimit(options.callLimit ?? maxConcurrentCalls);
    const implementation: UntypedServiceImplementation = {};
    for (const [name, handler] of Object.entries(handlers)) {
      implementation[name] = (call: ServerUnaryCall<AttachMessage, object>, callback: sendUnaryData<object>) => {
        void this.#answer(name, handler, call.request, callback);
      };
    }
    this.#server.addService(controlService(), implementation);
  }

  /** "in-use" where another server listens there; "unavailable" where the socket cannot be made. */
  async listen(): Promise<void> {
    const { socketPath } = this.#options;
    try {
      await mkdir(dirname(socketPath), { recursive: true, mode: 0o700 });
      await removeStaleSocket(socketPath);
      await new Promise<void>((resolve, reject) => {
        this.#server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), (error) =>
          error === null ? resolve() : reject(error),
        );
      });
      await chmod(socketPath, 0o600);
    } catch (error) {
      if (error instanceof OperationError) throw error;
      throw new OperationError("unavailable", `cannot listen on the control socket (${describe(error)})`, {
        cause: error,
        context: { controlSocket: socketPath },
      });
    }
  }

  /** Ends at once; calls in flight get no answer, which their callers take for "ask again". */
  async close(): Promise<void> {
    this.#server.forceShutdown();
    await rm(this.#options.socketPath, { force: true });
  }

  async #answer(
    operation: string,
    handler: Handler,
    request: AttachMessage,
    callback: sendUnaryData<object>,
  ): Promise<void> {
    const { log, clock, dataPlane } = this.#options;
    const startMs = clock.monotonicMs();
    const fields = (): Record<string, unknown> => ({
      operation,
      volumeId: (request as Partial<VolumeMessage>).volumeId,
      durationMs: Math.round(clock.monotonicMs() - startMs),
    });
    try {
      const response = await this.#limit.run(() => handler(dataPlane, request));
      log.debug("control call", { ...fields(), outcome: "ok" });
      callback(null, response);
    } catch (error) {
      const answer = encodeError(error, Object.values((request as Partial<AttachMessage>).secrets ?? {}));
      const outcome = error instanceof OperationError ? error.kind : "bug";
      const text = outcome === "bug" ? describe(error) : answer.details;
      log.warn("control call failed", { ...fields(), outcome, error: text });
      callback(answer);
    }
  }
}

async function removeStaleSocket(path: string): Promise<void> {
  if (await answers(path)) {
    throw new OperationError("in-use", "another server listens on the control socket: stop it first", {
      context: { controlSocket: path },
    });
  }
  await rm(path, { force: true });
}

/** True when somebody accepts connections at `path`. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
