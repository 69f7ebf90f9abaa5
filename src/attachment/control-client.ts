/**
 * The control API's calling end: a DataPlane over the server's unix socket. Stateless but for its channel, which
 * finds a restarted server by itself within a second. Every call has a deadline; an error of the server comes out as
 * the OperationError it was.
 */
import { Client, credentials } from "@grpc/grpc-js";
import type { ServiceDefinition, ServiceError } from "@grpc/grpc-js";
import { isKind } from "../base/errors.ts";
import type { VolumeId } from "../volume/identity.ts";
import { decodeError } from "./control-errors.ts";
import { controlService, decodeAttachment, encodeAttach, mustMethod } from "./control-protocol.ts";
import type { AttachmentMessage, MethodName } from "./control-protocol.ts";
import type { Attachment, AttachOptions, DataPlane } from "./data-plane.ts";

export interface ControlClientOptions {
  socketPath: string;
  /** Longest time of one call; the server goes on beyond it. Default: two minutes. */
  deadlineMs?: number;
}

export class ControlClient implements DataPlane {
  readonly #socketPath: string;
  readonly #deadlineMs: number;
  readonly #service: ServiceDefinition = controlService();
  readonly #client: Client;

  constructor(options: ControlClientOptions) {
    this.#socketPath = options.socketPath;
    this.#deadlineMs = options.deadlineMs ?? 120_000;
    this.#client = new Client(`unix:${options.socketPath}`, credentials.createInsecure(), {
      "grpc.initial_reconnect_backoff_ms": 50,
      "grpc.min_reconnect_backoff_ms": 50,
      "grpc.max_reconnect_backoff_ms": 500,
    });
  }

  async attach(options: AttachOptions, signal?: AbortSignal): Promise<Attachment> {
    const response = (await this.#call("Attach", encodeAttach(options), signal)) as { attachment: AttachmentMessage };
    return decodeAttachment(response.attachment);
  }

  async detach(volumeId: VolumeId, signal?: AbortSignal): Promise<void> {
    await this.#call("Detach", { volumeId }, signal);
  }

  async getAttachment(volumeId: VolumeId, signal?: AbortSignal): Promise<Attachment | undefined> {
    try {
      return decodeAttachment((await this.#call("GetAttachment", { volumeId }, signal)) as AttachmentMessage);
    } catch (error) {
      if (isKind(error, "not-found")) return undefined;
      throw error;
    }
  }

  async listAttachments(signal?: AbortSignal): Promise<Attachment[]> {
    const response = (await this.#call("ListAttachments", {}, signal)) as { attachments: AttachmentMessage[] };
    return response.attachments.map(decodeAttachment);
  }

  async flush(volumeId: VolumeId, signal?: AbortSignal): Promise<void> {
    await this.#call("Flush", { volumeId }, signal);
  }

  close(): void {
    this.#client.close();
  }

  #call(name: MethodName, request: object, signal: AbortSignal | undefined): Promise<object> {
    const { path, requestSerialize, responseDeserialize } = mustMethod(this.#service, name);
    return new Promise((resolve, reject) => {
      const options = { deadline: new Date(Date.now() + this.#deadlineMs) };
      const finish = (error: ServiceError | null, response?: object): void => {
        signal?.removeEventListener("abort", cancel);
        if (error !== null) reject(decodeError(error, this.#socketPath));
        else resolve(response ?? {});
      };
      const call = this.#client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, options, finish);
      const cancel = (): void => call.cancel();
      if (signal?.aborted === true) cancel();
      else signal?.addEventListener("abort", cancel, { once: true });
    });
  }
}
