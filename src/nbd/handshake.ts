/**
 * Fixed newstyle negotiation, server side: EXPORT_NAME, GO, INFO, LIST, ABORT, STARTTLS; any other option is answered
 * "unsupported" and its data skipped, so both sides stay in step. One function a phase, one entry in a table an option.
 *
 * Where TLS is asked for, it is the protocol's FORCEDTLS mode: before STARTTLS nothing but ABORT is answered otherwise than
 * "TLS required", no export is looked at, and not one byte that came before TLS counts as if it had come through it.
 * It ends with an open export and the bytes received after the negotiation, so transmission may run elsewhere; or with
 * undefined: the connection is then ended or destroyed and nothing is held.
 * Memory is bounded by the reader's; how many options a client may send, by OPTION_LIMIT; how long it takes, by the caller.
 */
import { OperationError, describe } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { nullLog } from "../base/log.ts";
import type { Connection } from "./connection.ts";
import { OPTION_ERROR } from "./errno.ts";
import type { ExportHandle, ExportSource } from "./export-source.ts";
import { HandshakeEnded, HandshakeReader } from "./handshake-reader.ts";
import type { OptionHeader } from "./protocol.ts";
import {
  CLIENT_FLAGS_SIZE,
  EXPORT_NAME_LIMIT_BYTES,
  HANDSHAKE_FIXED_NEWSTYLE,
  HANDSHAKE_NO_ZEROES,
  INFO_NAME,
  OPTION_ABORT,
  OPTION_EXPORT_NAME,
  OPTION_GO,
  OPTION_HEADER_SIZE,
  OPTION_INFO,
  OPTION_LIST,
  OPTION_MAGIC,
  OPTION_STARTTLS,
  PAYLOAD_LIMIT_BYTES,
  PREFERRED_BLOCK_SIZE_BYTES,
  REPLY_ACK,
  REPLY_ERROR_INVALID,
  REPLY_ERROR_TLS_REQUIRED,
  REPLY_ERROR_TOO_BIG,
  REPLY_ERROR_UNKNOWN,
  REPLY_ERROR_UNSUPPORTED,
  REPLY_INFO,
  REPLY_SERVER,
  STRING_LIMIT_BYTES,
  decodeInfoRequest,
  decodeOptionHeader,
  encodeExportNameAnswer,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoName,
  encodeListedExport,
  encodeOptionReply,
  transmissionFlags,
} from "./protocol.ts";

const OPTION_LIMIT = 256;
/** Longest data of an option that is read: a name and all information types there could be. */
const OPTION_DATA_LIMIT_BYTES = 16 * 1024;
/** Longest data that is skipped; a longer one ends the connection. */
const OPTION_SKIP_LIMIT_BYTES = 1024 * 1024;

export interface HandshakeOptions {
  log?: Log;
  /**
   * Makes a secret connection of the plain one, which it takes over; where it is given, clients must ask for that first.
   * Rejects with an OperationError where the client is not let in.
   */
  startTls?: (connection: Connection) => Promise<Connection>;
}

export interface HandshakeResult {
  /** The one to go on with: another than before where TLS was started. */
  connection: Connection;
  /** Open; whoever got it releases it. */
  handle: ExportHandle;
  name: string;
  /** Bytes after the negotiation: the start of the transmission. */
  leftover: Buffer;
}

/** The client broke the protocol in a way that leaves no step to stay in. */
class ProtocolViolation extends Error {
  override readonly name = "ProtocolViolation";
}

/** Negotiates on `connection`; undefined where no transmission follows. Never rejects for what the client does. */
export async function performHandshake(
  connection: Connection,
  source: ExportSource,
  options: HandshakeOptions = {},
): Promise<HandshakeResult | undefined> {
  const handshake = new Handshake(connection, source, options);
  return handshake.perform();
}

type Step = "next" | "ended" | "transmission";

class Handshake {
  readonly #source: ExportSource;
  readonly #log: Log;
  #connection: Connection;
  #reader: HandshakeReader;
  /** Undefined where TLS is not served, and once it was started. */
  #startTls: HandshakeOptions["startTls"];
  #secured = false;
  #fixed = false;
  #noZeroes = false;
  /** The export opened last, by INFO or GO, so that GO after INFO opens it once. */
  #opened: { name: string; handle: ExportHandle } | undefined;

  constructor(connection: Connection, source: ExportSource, options: HandshakeOptions) {
    this.#connection = connection;
    this.#source = source;
    this.#log = options.log ?? nullLog;
    this.#startTls = options.startTls;
    this.#reader = new HandshakeReader(connection);
  }

  async perform(): Promise<HandshakeResult | undefined> {
    try {
      await this.#greet();
      for (let count = 0; count < OPTION_LIMIT; count += 1) {
        const step = await this.#option();
        if (step === "next") continue;
        const opened = this.#opened;
        if (step === "transmission" && opened !== undefined) {
          this.#opened = undefined;
          return { ...opened, connection: this.#connection, leftover: this.#reader.takeLeftover() };
        }
        this.#connection.end();
        return undefined;
      }
      throw new ProtocolViolation(`more than ${OPTION_LIMIT} options`);
    } catch (error) {
      this.#connection.destroy();
      if (error instanceof ProtocolViolation) this.#log.warn("handshake refused", { reason: error.message });
      else if (error instanceof HandshakeEnded) this.#log.debug("handshake ended", { reason: error.message });
      else throw error;
      return undefined;
    } finally {
      await this.#releaseOpened();
    }
  }

  async #greet(): Promise<void> {
    await this.#send(encodeGreeting(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES));
    const flags = (await this.#reader.read(CLIENT_FLAGS_SIZE)).readUInt32BE(0);
    const unknown = flags & ~(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES);
    if (unknown !== 0) throw new ProtocolViolation(`unknown client flags 0x${(unknown >>> 0).toString(16)}`);
    this.#fixed = (flags & HANDSHAKE_FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & HANDSHAKE_NO_ZEROES) !== 0;
  }

  async #option(): Promise<Step> {
    const header = decodeOptionHeader(await this.#reader.read(OPTION_HEADER_SIZE));
    if (header.magic !== OPTION_MAGIC) throw new ProtocolViolation(`bad option magic 0x${header.magic.toString(16)}`);
    if (header.lengthBytes > OPTION_SKIP_LIMIT_BYTES) {
      throw new ProtocolViolation(`option ${header.option} with ${header.lengthBytes} bytes of data`);
    }
    if (!this.#fixed && header.option !== OPTION_EXPORT_NAME) {
      throw new ProtocolViolation(`option ${header.option} of a client that is not fixed newstyle`);
    }
    const { option } = header;
    if (this.#startTls !== undefined && option !== OPTION_STARTTLS && option !== OPTION_ABORT) {
      return this.#demandTls(header);
    }
    switch (option) {
      case OPTION_STARTTLS:
        return this.#secure(header);
      case OPTION_EXPORT_NAME:
        return this.#exportName(header);
      case OPTION_ABORT:
        await this.#reader.skip(header.lengthBytes);
        await this.#reply(header, REPLY_ACK);
        return "ended";
      case OPTION_LIST:
        return this.#list(header);
      case OPTION_INFO:
      case OPTION_GO:
        return this.#info(header);
      default:
        await this.#reader.skip(header.lengthBytes);
        await this.#refuse(header, REPLY_ERROR_UNSUPPORTED, "option is not supported");
        return "next";
    }
  }

  async #demandTls(header: OptionHeader): Promise<Step> {
    if (header.option === OPTION_EXPORT_NAME) throw new ProtocolViolation("an export is asked for before tls");
    await this.#reader.skip(header.lengthBytes);
    await this.#refuse(header, REPLY_ERROR_TLS_REQUIRED, "tls is required here: ask for it first");
    return "next";
  }

  async #secure(header: OptionHeader): Promise<Step> {
    const startTls = this.#startTls;
    await this.#reader.skip(header.lengthBytes);
    if (startTls === undefined || header.lengthBytes > 0) {
      const isKnown = this.#secured || startTls !== undefined;
      const message = this.#secured ? "tls was started already" : "tls cannot be started so";
      await this.#refuse(header, isKnown ? REPLY_ERROR_INVALID : REPLY_ERROR_UNSUPPORTED, message);
      return "next";
    }
    if (this.#reader.takeLeftover().length > 0) throw new ProtocolViolation("bytes sent before tls was granted");
    await this.#reply(header, REPLY_ACK);
    try {
      this.#connection = await startTls(this.#connection);
    } catch (error) {
      if (error instanceof OperationError) throw new ProtocolViolation(error.message);
      throw error;
    }
    this.#startTls = undefined;
    this.#secured = true;
    this.#reader = new HandshakeReader(this.#connection);
    return "next";
  }

  /** The oldest option: no error can be answered, so the connection ends where the export cannot be opened. */
  async #exportName(header: OptionHeader): Promise<Step> {
    if (header.lengthBytes > EXPORT_NAME_LIMIT_BYTES) throw new ProtocolViolation("export name too long");
    const name = decodeName(await this.#reader.read(header.lengthBytes));
    if (name === undefined) throw new ProtocolViolation("export name is not UTF-8");
    const failure = await this.#open(name);
    if (failure !== undefined || this.#opened === undefined) {
      throw new ProtocolViolation(`export cannot be opened: ${failure?.message ?? "unknown"}`);
    }
    const { device } = this.#opened.handle;
    await this.#send(encodeExportNameAnswer(device.sizeBytes, transmissionFlags(device), !this.#noZeroes));
    return "transmission";
  }

  async #list(header: OptionHeader): Promise<Step> {
    if (header.lengthBytes !== 0) {
      await this.#reader.skip(header.lengthBytes);
      await this.#refuse(header, REPLY_ERROR_INVALID, "a list request has no data");
      return "next";
    }
    const listed = await this.#names();
    if (listed instanceof OperationError) {
      await this.#refuse(header, OPTION_ERROR[listed.kind], listed.message);
      return "next";
    }
    for (const name of listed) {
      const encoded = Buffer.from(name);
      if (encoded.length > EXPORT_NAME_LIMIT_BYTES) continue;
      await this.#reply(header, REPLY_SERVER, encodeListedExport(encoded));
    }
    await this.#reply(header, REPLY_ACK);
    return "next";
  }

  async #names(): Promise<string[] | OperationError> {
    try {
      return await this.#source.list();
    } catch (error) {
      if (!(error instanceof OperationError)) throw error;
      this.#log.warn("exports could not be listed", { error: describe(error) });
      return error;
    }
  }

  async #info(header: OptionHeader): Promise<Step> {
    if (header.lengthBytes > OPTION_DATA_LIMIT_BYTES) {
      await this.#reader.skip(header.lengthBytes);
      await this.#refuse(header, REPLY_ERROR_TOO_BIG, "request is too long");
      return "next";
    }
    const request = decodeInfoRequest(await this.#reader.read(header.lengthBytes));
    const name = request === undefined ? undefined : decodeName(request.name);
    if (request === undefined || name === undefined || request.name.length > EXPORT_NAME_LIMIT_BYTES) {
      await this.#refuse(header, REPLY_ERROR_INVALID, "malformed request or export name");
      return "next";
    }
    const failure = await this.#open(name);
    if (failure !== undefined) {
      await this.#refuse(header, OPTION_ERROR[failure.kind], failure.message);
      return "next";
    }
    if (this.#opened === undefined) {
      await this.#refuse(header, REPLY_ERROR_UNKNOWN, "no such export");
      return "next";
    }
    const { device } = this.#opened.handle;
    await this.#reply(header, REPLY_INFO, encodeInfoExport(device.sizeBytes, transmissionFlags(device)));
    if (request.requested.includes(INFO_NAME)) await this.#reply(header, REPLY_INFO, encodeInfoName(request.name));
    const sizes = {
      minimum: device.blockSizeBytes,
      preferred: Math.max(PREFERRED_BLOCK_SIZE_BYTES, device.blockSizeBytes),
      maximum: PAYLOAD_LIMIT_BYTES,
    };
    await this.#reply(header, REPLY_INFO, encodeInfoBlockSize(sizes));
    await this.#reply(header, REPLY_ACK);
    return header.option === OPTION_GO ? "transmission" : "next";
  }

  /** Makes `name` the opened export, or none; answers the failure, where it is one other than "no such export". */
  async #open(name: string): Promise<OperationError | undefined> {
    if (this.#opened?.name === name) return undefined;
    await this.#releaseOpened();
    try {
      const handle = await this.#source.open(name);
      if (handle !== undefined) this.#opened = { name, handle };
      return undefined;
    } catch (error) {
      if (!(error instanceof OperationError)) throw error;
      this.#log.warn("export could not be opened", { export: name, error: describe(error) });
      return error;
    }
  }

  async #releaseOpened(): Promise<void> {
    const opened = this.#opened;
    this.#opened = undefined;
    await opened?.handle.release();
  }

  async #refuse(header: OptionHeader, type: number, message: string): Promise<void> {
    await this.#reply(header, type, Buffer.from(message).subarray(0, STRING_LIMIT_BYTES));
  }

  async #reply(header: OptionHeader, type: number, data: Uint8Array = new Uint8Array(0)): Promise<void> {
    await this.#send(encodeOptionReply(header.option, type, data));
  }

  /** Resolves when the kernel has taken the bytes, so that answers never pile up before a client that does not read. */
  #send(bytes: Buffer): Promise<void> {
    return new Promise((resolve) => this.#connection.write(bytes, resolve));
  }
}

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decodeName(bytes: Buffer): string | undefined {
  try {
    const name = strictUtf8.decode(bytes);
    return name.includes("\0") ? undefined : name;
  } catch {
    return undefined;
  }
}
