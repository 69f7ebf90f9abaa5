/**
 * What a supervisor (supervisor.ts) and the processes it has started say to each other, and the processes' end of it.
 * They talk by Node's channel between parent and child, which also tells a process that its supervisor is gone.
 */

/**
 * What a process is started as: "server" serves as soon as it can; "standby" has everything loaded, takes nothing, and
 * serves when the one before it has died. The supervisor starts a standby for a server that is ready and no other, so a
 * standby may rely on what that one has found out about the store.
 */
export type Role = "server" | "standby";

/** From a process: a standby has everything loaded; a server serves all that it is asked for. */
export type Progress = { type: "standing-by" } | { type: "ready" };

/** To a process, when the one before it has ended. */
export interface Turn {
  type: "turn";
  /** How often a process has gone on for another one since the supervisor started, this time included. */
  takeovers: number;
}

/** A process's view of its supervisor. */
export interface Supervised {
  readonly role: Role;
  /** Resolves when the process before this one has ended; at once for a "server". */
  readonly turn: Promise<void>;
  /** Resolves when the supervisor is gone. */
  readonly orphaned: Promise<"orphaned">;
  takeovers(): number;
  tell(progress: Progress["type"]): void;
}

/** The channel of this process to the supervisor that started it as `role`. */
export function superviseBy(channel: NodeJS.Process, role: Role): Supervised {
  const turn = Promise.withResolvers<void>();
  const orphaned = Promise.withResolvers<"orphaned">();
  let takeovers = 0;
  if (role === "server") turn.resolve();
  channel.on("message", (message: Turn) => {
    takeovers = message.takeovers;
    turn.resolve();
  });
  channel.once("disconnect", () => orphaned.resolve("orphaned"));
  if (!channel.connected) orphaned.resolve("orphaned");
  return {
    role,
    turn: turn.promise,
    orphaned: orphaned.promise,
    takeovers: () => takeovers,
    // A supervisor that is gone by now is told of by the end of the channel.
    tell: (type) => void channel.send?.({ type } satisfies Progress, () => {}),
  };
}
