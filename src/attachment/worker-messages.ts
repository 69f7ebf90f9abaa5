/**
 * What the control thread and the threads that serve volumes say to each other. Calls go to the worker and are
 * answered once, by number; events come from the worker unasked. Everything is plain data for structured clone, but
 * for file descriptors: they are numbers of the one process, and belong to the worker from the call on.
 */
import { OperationError } from "../base/errors.ts";
import type { ErrorKind } from "../base/errors.ts";
import type { VolumeId } from "../volume/identity.ts";
import type { VolumeStatus } from "../volume/status.ts";
import type { BrokenRequest, OpenRequest, ServeRequest } from "./volume-host.ts";

/** What an opened volume looks like from the control thread. */
export interface OpenedVolume {
  sizeBytes: number;
  blockSizeBytes: number;
  readOnly: boolean;
}

/** Arguments and result of every call. */
export interface WorkerCalls {
  open: { request: OpenRequest; result: OpenedVolume };
  openBroken: { request: BrokenRequest; result: OpenedVolume };
  status: { request: { volumeId: VolumeId }; result: VolumeStatus };
  serve: { request: ServeRequest & { volumeId: VolumeId; connection: number }; result: undefined };
  /** Answered when the connection has closed. */
  drainConnection: { request: { connection: number }; result: undefined };
  /** As drainConnection, without waiting for a client to read its answers. */
  destroyConnection: { request: { connection: number }; result: undefined };
  drain: { request: { volumeId: VolumeId }; result: undefined };
  leave: { request: { volumeId: VolumeId }; result: undefined };
  close: { request: { volumeId: VolumeId }; result: undefined };
  /** Plain data of observability/metrics.ts. */
  metrics: { request: undefined; result: readonly object[] };
  /** Closes what the thread holds apart from volumes; nothing may be called afterwards. */
  stop: { request: undefined; result: undefined };
}

export type CallName = keyof WorkerCalls;

export type CallMessage = {
  [Name in CallName]: { id: number; name: Name; request: WorkerCalls[Name]["request"] };
}[CallName];

export interface ErrorMessage {
  kind: ErrorKind;
  message: string;
}

export type WorkerMessage =
  /** Once, before anything else: it could begin. */
  | { type: "loaded" }
  /** Once, when it has begun: calls are taken from now on. */
  | { type: "ready" }
  | { type: "result"; id: number; result: unknown }
  | { type: "error"; id: number; error: ErrorMessage }
  | { type: "volumeFailed"; volumeId: VolumeId; failure: string }
  | { type: "connectionClosed"; connection: number; reason: string };

/** A message port as both ends use it; MessagePort and Worker fit. */
export interface Port<Sent, Received> {
  postMessage(message: Sent): void;
  on(event: "message", listener: (message: Received) => void): unknown;
}

export function errorOfMessage(message: ErrorMessage): OperationError {
  return new OperationError(message.kind, message.message);
}
