/**
 * What an NBD server offers, by name. The server knows no volumes: who puts the parts together brings a source.
 */
import type { BlockDevice } from "../block/device.ts";

export interface ExportHandle {
  /**
   * Shared by all connections of the export, so that a flush on one covers writes answered on another. Clients may ask
   * for any byte range unless the device's block size is advertised to them, so it is best byte-granular.
   */
  readonly device: BlockDevice;
  /** Gives the export back when its connection is gone and the device has settled; called once, never rejects. */
  release(): void | Promise<void>;
}

export interface ExportSource {
  /** Names to show to clients; may leave out what opens all the same. Failures are OperationErrors. */
  list(): Promise<string[]> | string[];
  /**
   * Opens the export `name` (as the client sent it: any string up to 4096 bytes, "" for the default one; never a path
   * to trust). undefined where there is none. Other failures are OperationErrors; their messages reach the client.
   */
  open(name: string): Promise<ExportHandle | undefined>;
}
