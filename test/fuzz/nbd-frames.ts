/**
 * Streams of NBD requests by seed, valid and invalid mixed, and what must be answered to each: the error depends on the
 * request alone. Valid requests touch nothing outside the client's own region, so that several clients of one export do
 * not disturb each other; invalid ones may claim any range, and must have no effect.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { NbdModel } from "./nbd-model.ts";

export interface Region {
  /** Of the whole export. */
  sizeBytes: number;
  offset: number;
  length: number;
}

export interface FrameStream {
  bytes: Buffer;
  /** In the order of the requests, whose cookies count from 0. */
  errors: Uint8Array;
  /** Bytes that a successful read brings; 0 for all others. */
  readLengths: Uint32Array;
  frames: number;
}

const READ = 0;
const WRITE = 1;
const FLUSH = 3;
const TRIM = 4;
const WRITE_ZEROES = 6;
const DATA_TYPES = [READ, READ, READ, READ, WRITE, WRITE, TRIM, WRITE_ZEROES] as const;

interface StreamOptions {
  frames: number;
  /** One request in so many is a flush, and as many carry FUA. */
  flushEvery: number;
  payloadBytes: number;
}

interface Fields {
  flags: number;
  type: number;
  offset: bigint;
  length: number;
}

/** `frames` requests, with payloads of random bytes where they write. */
export function frameStream(random: SeededRandom, region: Region, options: StreamOptions): FrameStream {
  const model = new NbdModel(region.sizeBytes, 1);
  const errors = new Uint8Array(options.frames);
  const readLengths = new Uint32Array(options.frames);
  const pieces: Buffer[] = [];
  for (let index = 0; index < options.frames; index += 1) {
    const isFlush = random.below(options.flushEvery) === 0;
    const fields = isFlush ? { flags: 0, type: FLUSH, offset: 0n, length: 0 } : anyFields(random, region, options);
    errors[index] = model.errorOf(fields);
    if (fields.type === READ && errors[index] === 0) readLengths[index] = fields.length;
    pieces.push(encode(fields, index), fields.type === WRITE ? random.bytes(fields.length) : Buffer.alloc(0));
  }
  return { bytes: Buffer.concat(pieces), errors, readLengths, frames: options.frames };
}

function anyFields(random: SeededRandom, region: Region, options: StreamOptions): Fields {
  const length = random.below(8) === 0 ? 0 : 1 + random.below(options.payloadBytes);
  const offset = BigInt(region.offset + random.below(region.length - length));
  const type = DATA_TYPES[random.below(DATA_TYPES.length)];
  const fields = { flags: random.below(options.flushEvery) === 0 ? 1 : 0, type, offset, length };
  switch (random.below(8)) {
    case 0:
      return { ...fields, flags: 1 << (2 + random.below(14)) };
    case 1:
      return { ...fields, offset: BigInt(region.sizeBytes) - BigInt(random.below(length + 1)) + 1n };
    case 2:
      return { ...fields, offset: BigInt.asUintN(64, -BigInt(1 + random.below(2 ** 20))) };
    case 3:
      return type === WRITE ? { ...fields, flags: 2 } : { ...fields, length: 0x8000_0000 + random.below(0x7fff_ffff) };
    case 4:
      return { ...fields, type: [5, 7, 8, 64, 0xffff][random.below(5)] };
    default:
      return fields;
  }
}

function encode({ flags, type, offset, length }: Fields, cookie: number): Buffer {
  const out = Buffer.allocUnsafe(28);
  out.writeUInt32BE(0x25609513, 0);
  out.writeUInt16BE(flags, 4);
  out.writeUInt16BE(type, 6);
  out.writeUInt32BE(0x5eed_0000, 8);
  out.writeUInt32BE(cookie, 12);
  out.writeBigUInt64BE(offset, 16);
  out.writeUInt32BE(length, 24);
  return out;
}

/** Takes replies apart as they come, in any order and any pieces, and holds each against its stream. */
export class ReplyChecker {
  readonly #stream: FrameStream;
  readonly #seen: Uint8Array;
  #rest: Buffer = Buffer.alloc(0);
  answered = 0;

  constructor(stream: FrameStream) {
    this.#stream = stream;
    this.#seen = new Uint8Array(stream.frames);
  }

  get isComplete(): boolean {
    return this.answered === this.#stream.frames;
  }

  take(chunk: Buffer): void {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let at = 0;
    while (at + 16 <= bytes.length) {
      const index = bytes.readUInt32BE(at + 12);
      const isReply = bytes.readUInt32BE(at) === 0x67446698 && bytes.readUInt32BE(at + 8) === 0x5eed_0000;
      if (!isReply || index >= this.#stream.frames || this.#seen[index] !== 0) throw new Error(`no reply at ${at}`);
      const error = bytes.readUInt32BE(at + 4);
      if (error !== this.#stream.errors[index]) {
        throw new Error(`request ${index} was answered ${error} instead of ${this.#stream.errors[index]}`);
      }
      const end = at + 16 + this.#stream.readLengths[index];
      if (end > bytes.length) break;
      this.#seen[index] = 1;
      this.answered += 1;
      at = end;
    }
    this.#rest = at === bytes.length ? Buffer.alloc(0) : Buffer.from(bytes.subarray(at));
  }
}
