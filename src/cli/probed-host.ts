/** Holds volumes back until the store has shown that it keeps conditional writes. */
import type { VolumeHost } from "../attachment/volume-host.ts";
import type { Redactor } from "../observability/redaction.ts";

/**
 * No volume is taken before the store has shown that it keeps conditional writes. One that this node had before a
 * restart is opened at once, because its users wait, and served at once where the store was found good before
 * (trusted-store.ts); else the probe is awaited, and where it fails the process ends before the volume is served.
 */
export function probedHost(parts: {
  inner: VolumeHost;
  redactor: Redactor;
  /** Resolves when the store has passed its probe in this process. */
  probed: Promise<void>;
  /** Resolves when volumes of the process before may be served. */
  resumable: Promise<void>;
}): VolumeHost {
  const { inner, redactor, probed, resumable } = parts;
  return {
    open: async (request) => {
      for (const secret of Object.values(request.secrets)) redactor.addSecret(secret);
      if (request.mode === "take") await probed;
      const [volume] = await Promise.all([inner.open(request), resumable]);
      return volume;
    },
    openBroken: (request) => inner.openBroken(request),
  };
}
