/**
 * The one system-call binding of this room: the few libc functions that Node's core lacks, by koffi. It is loaded on
 * first use, so that a process which attaches nothing never needs it.
 * Every function throws SystemCallError (with the errno's name as `code`) instead of returning -1. It only translates:
 * no retries, no policy. It must never be given a call that can wait on the calling thread, but for ioctl, which is
 * for threads of their own; sendNetlink runs on Node's thread pool.
 */
import { OperationError } from "../../base/errors.ts";

/** A failed system call; `code` is the errno's name, as in Node's own errors. */
export class SystemCallError extends Error {
  readonly code: string;

  constructor(call: string, code: string) {
    super(`${call}: ${code}`);
    this.name = "SystemCallError";
    this.code = code;
  }
}

export interface Libc {
  /** A connected pair of close-on-exec unix stream sockets. */
  readonly socketPair: () => [number, number];
  readonly close: (fd: number) => void;
  /** Another descriptor, close-on-exec, of the same open file. */
  readonly duplicate: (fd: number) => number;
  /** A close-on-exec, non-blocking generic netlink socket, bound to a port of the kernel's choice. */
  readonly netlinkSocket: () => number;
  /**
   * Sends one message to the kernel, on a thread of Node's pool: the kernel handles a netlink request within this
   * call, so it takes as long as the request does. The errno of a failure is not known.
   */
  readonly sendNetlink: (fd: number, message: Buffer) => Promise<void>;
  /** The same on the calling thread: for a request that waits for nobody. */
  readonly sendNetlinkNow: (fd: number, message: Buffer) => void;
  /** Receives one datagram; undefined where none has come. "EMSGSIZE" where it is longer than `target`. */
  readonly receive: (fd: number, target: Buffer) => Buffer | undefined;
  /** SO_SNDTIMEO of a socket in milliseconds; 0 = none. */
  readonly sendTimeoutMs: (fd: number) => number;
  readonly setSendTimeoutMs: (fd: number, ms: number) => void;
  /** ioctl with a plain number as argument. May wait: call it on a thread of its own. */
  readonly ioctl: (fd: number, request: number, argument: number | bigint) => number;
  /** shutdown(2) of both directions; a socket that is shut down already is no error. */
  readonly shutdown: (fd: number) => void;
  /** Makes a block device node, mode 0600. */
  readonly makeBlockNode: (path: string, major: number, minor: number) => void;
  readonly isIoFlusher: () => boolean;
  readonly setIoFlusher: () => void;
  /** PR_SET_DUMPABLE 0: no core dump, and only root with CAP_SYS_PTRACE may look into the process. Ends with execve. */
  readonly forbidDumps: () => void;
  /**
   * Has malloc take pieces of at least `bytes` from the kernel one by one and give each back when it is freed, in all
   * threads. False where the C library has no such switch.
   */
  readonly mapLargePieces: (bytes: number) => boolean;
  /** Asks for huge pages behind the whole pages of `memory` (MADV_HUGEPAGE). "EINVAL" where this kernel has none. */
  readonly preferHugePages: (memory: Uint8Array) => void;
  /** The name of an errno: 2 → "ENOENT". */
  readonly errorName: (errno: number) => string;
  /**
   * preadv2 with RWF_NOWAIT: how many bytes from `position` on came from memory into `target`; -1 where the first of them
   * would have to be waited for. Fewer than asked for where the file, or what of it is in memory, ends. Throws where the
   * file system cannot do that ("ENOTSUP").
   */
  readonly readInMemory: (fd: number, target: Uint8Array, position: number) => number;
  /** What a socket has at once: how many bytes came into `target`; 0 where its peer has ended, -1 where there are none now, or an error. */
  readonly receiveNow: (fd: number, target: Uint8Array) => number;
}

/* Numbers of Linux's headers: the same on x86-64 and arm64, the machines the driver is built for. */
const AF_UNIX = 1;
const AF_NETLINK = 16;
const NETLINK_GENERIC = 16;
const SOCK_STREAM = 1;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_SNDTIMEO = 21;
const MSG_DONTWAIT = 0x40;
const MSG_TRUNC = 0x20;
const SHUT_RDWR = 2;
const F_DUPFD_CLOEXEC = 1030;
const S_IFBLK = 0o060000;
const PR_SET_DUMPABLE = 4;
const PR_SET_IO_FLUSHER = 57;
const PR_GET_IO_FLUSHER = 58;
const SOCKADDR_NL_SIZE = 12;
const RWF_NOWAIT = 8;
const MADV_HUGEPAGE = 14;
/** The smallest pages there are; where they are larger, madvise wants larger pieces and says so by "EINVAL". */
const PAGE_BYTES = 4096;
/** glibc's malloc.h. */
const M_MMAP_THRESHOLD = -3;

type Koffi = typeof import("koffi");
type Value = number | bigint | string | Buffer | Int32Array | BigInt64Array | BigUint64Array;
type Call = (...values: readonly Value[]) => number;
type AsyncCall = (fd: number, bytes: Buffer, length: number, flags: number, done: Done) => void;
type Done = (error: unknown, result: number) => void;

let loaded: Libc | undefined;

/** The binding, loaded once. "unavailable" where koffi is missing or does not run on this machine. */
export async function loadLibc(): Promise<Libc> {
  if (loaded !== undefined) return loaded;
  let koffi: Koffi;
  try {
    koffi = await import("koffi");
  } catch (cause) {
    throw new OperationError(
      "unavailable",
      "cannot load the system-call binding (npm package koffi): kernel devices cannot be attached; reinstall the " +
        "dependencies for this platform",
      { cause, context: { platform: `${process.platform}-${process.arch}` } },
    );
  }
  loaded = bind(koffi);
  return loaded;
}

/** Defines functions of libc that throw SystemCallError instead of returning a negative number. */
class Binder {
  readonly #koffi: Koffi;
  readonly #library: ReturnType<Koffi["load"]>;
  readonly #names: ReadonlyMap<number, string>;

  constructor(koffi: Koffi) {
    this.#koffi = koffi;
    this.#library = koffi.load(null);
    // Some numbers have two names: the first is Node's (EAGAIN, not EWOULDBLOCK).
    const names = Object.entries(koffi.os.errno).toReversed();
    this.#names = new Map(names.map(([name, number]) => [number, name]));
  }

  errorName(errno: number): string {
    return this.#names.get(errno) ?? `errno ${errno}`;
  }

  call(name: string, definition: string): Call {
    const native = this.#library.func(definition) as unknown as Call;
    return (...values) => {
      const result = native(...values);
      if (result < 0) throw new SystemCallError(name, this.errorName(this.#koffi.errno()));
      return result;
    };
  }

  /** Without the test for errors, for hot paths: errorName(errno()) tells what a negative result means. */
  plain(definition: string): Call {
    return this.#library.func(definition);
  }

  /** The same, undefined where this C library lacks the function. */
  optional(definition: string): Call | undefined {
    try {
      return this.plain(definition);
    } catch {
      return undefined;
    }
  }

  errno(): number {
    return this.#koffi.errno();
  }

  /** Where the memory begins; that of a Buffer stays there as long as it lives. */
  address(memory: ArrayBufferLike): bigint {
    return this.#koffi.address(new Uint8Array(memory));
  }

  asynchronous(definition: string): AsyncCall {
    return (this.#library.func(definition) as unknown as { async: AsyncCall }).async;
  }
}

function bind(koffi: Koffi): Libc {
  const binder = new Binder(koffi);
  const ioctl = binder.call("ioctl", "int ioctl(int fd, unsigned long request, unsigned long argument)");
  const mknod = binder.call("mknod", "int mknod(const char *path, uint32 mode, uint64 device)");
  const prctl = binder.call("prctl", "int prctl(int option, ulong a, ulong b, ulong c, ulong d)");
  return {
    errorName: (errno) => binder.errorName(errno),
    ...bindSockets(binder),
    ...bindReads(binder),
    mapLargePieces: (bytes) => {
      const mallopt = binder.optional("int mallopt(int parameter, int value)");
      return mallopt !== undefined && mallopt(M_MMAP_THRESHOLD, bytes) === 1;
    },
    preferHugePages: bindAdvice(binder),
    ...bindNetlink(binder),
    ioctl: (fd, request, argument) => ioctl(fd, request, argument),
    makeBlockNode: (path, major, minor) => {
      mknod(path, S_IFBLK | 0o600, encodeDevice(major, minor));
    },
    isIoFlusher: () => prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) === 1,
    setIoFlusher: () => {
      prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    },
    forbidDumps: () => {
      prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    },
  };
}

function bindSockets(
  binder: Binder,
): Pick<Libc, "close" | "duplicate" | "socketPair" | "sendTimeoutMs" | "setSendTimeoutMs" | "shutdown"> {
  const close = binder.call("close", "int close(int fd)");
  const fcntl = binder.call("fcntl", "int fcntl(int fd, int command, int argument)");
  const socketpair = binder.call("socketpair", "int socketpair(int domain, int type, int protocol, void *fds)");
  const getsockopt = binder.call(
    "getsockopt",
    "int getsockopt(int fd, int level, int name, void *value, void *length)",
  );
  const setsockopt = binder.call(
    "setsockopt",
    "int setsockopt(int fd, int level, int name, const void *value, uint32 length)",
  );
  const shutdown = binder.call("shutdown", "int shutdown(int fd, int how)");
  return {
    duplicate: (fd) => fcntl(fd, F_DUPFD_CLOEXEC, 3),
    close: (fd) => {
      close(fd);
    },
    socketPair: () => {
      const fds = new Int32Array(2);
      socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
      return [fds[0], fds[1]];
    },
    sendTimeoutMs: (fd) => {
      const time = new BigInt64Array(2);
      getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, time, Int32Array.of(time.byteLength));
      return Number(time[0]) * 1000 + Number(time[1]) / 1000;
    },
    setSendTimeoutMs: (fd, ms) => {
      const time = BigInt64Array.of(BigInt(Math.floor(ms / 1000)), BigInt((ms % 1000) * 1000));
      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, time, time.byteLength);
    },
    shutdown: (fd) => {
      try {
        shutdown(fd, SHUT_RDWR);
      } catch (error) {
        if (!(error instanceof SystemCallError) || error.code !== "ENOTCONN") throw error;
      }
    },
  };
}

function bindAdvice(binder: Binder): Libc["preferHugePages"] {
  const madvise = binder.call("madvise", "int madvise(uint64 address, size_t length, int advice)");
  return (memory) => {
    const start = Number(binder.address(memory.buffer)) + memory.byteOffset;
    const first = Math.ceil(start / PAGE_BYTES) * PAGE_BYTES;
    const end = Math.floor((start + memory.length) / PAGE_BYTES) * PAGE_BYTES;
    if (end > first) madvise(first, end - first, MADV_HUGEPAGE);
  };
}

function bindNetlink(binder: Binder): Pick<Libc, "netlinkSocket" | "sendNetlink" | "sendNetlinkNow" | "receive"> {
  const socket = binder.call("socket", "int socket(int domain, int type, int protocol)");
  const bindSocket = binder.call("bind", "int bind(int fd, const void *address, uint32 length)");
  const close = binder.call("close", "int close(int fd)");
  const recv = binder.call("recv", "long recv(int fd, void *target, size_t length, int flags)");
  const sendNow = binder.call("send", "long send(int fd, const void *bytes, size_t length, int flags)");
  const send = binder.asynchronous("long send(int fd, const void *bytes, size_t length, int flags)");
  return {
    netlinkSocket: () => {
      const fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_GENERIC);
      try {
        bindSocket(fd, Buffer.from(Uint16Array.of(AF_NETLINK, 0, 0, 0, 0, 0).buffer), SOCKADDR_NL_SIZE);
      } catch (error) {
        close(fd);
        throw error;
      }
      return fd;
    },
    sendNetlink: async (fd, message) => {
      const sent = Promise.withResolvers<number>();
      send(fd, message, message.length, 0, (error, result) => {
        if (error instanceof Error) sent.reject(error);
        else sent.resolve(result);
      });
      mustBeWhole(await sent.promise, message);
    },
    sendNetlinkNow: (fd, message) => mustBeWhole(sendNow(fd, message, message.length, 0), message),
    receive: (fd, target) => {
      try {
        const length = recv(fd, target, target.length, MSG_DONTWAIT | MSG_TRUNC);
        if (length > target.length) throw new SystemCallError("recv", "EMSGSIZE");
        return target.subarray(0, length);
      } catch (error) {
        if (error instanceof SystemCallError && (error.code === "EAGAIN" || error.code === "EINTR")) return undefined;
        throw error;
      }
    },
  };
}

function bindReads(binder: Binder): Pick<Libc, "readInMemory" | "receiveNow"> {
  const preadv2 = binder.plain("long preadv2(int fd, uint64 vector, int count, int64 position, int flags)");
  const recv = binder.plain("long recv(int fd, uint64 target, size_t length, int flags)");
  /** A struct iovec: address and length, 64 bits each. An ArrayBuffer made by itself never moves. */
  const vector = new Uint32Array(new ArrayBuffer(16));
  const vectorAddress = Number(binder.address(vector.buffer));
  // Most reads go to the same few pieces of memory, and asking for an address is slow.
  const starts = new WeakMap<ArrayBufferLike, number>();
  /** Addresses have 57 bits at most, and those of a process 47 unless it asks for more: exact as numbers. */
  const addressOf = (memory: Uint8Array): number => {
    let start = starts.get(memory.buffer);
    if (start === undefined) starts.set(memory.buffer, (start = Number(binder.address(memory.buffer))));
    return start + memory.byteOffset;
  };
  return {
    receiveNow: (fd, target) => recv(fd, addressOf(target), target.length, MSG_DONTWAIT),
    readInMemory: (fd, target, position) => {
      const address = addressOf(target);
      vector[0] = address;
      vector[1] = address / 2 ** 32;
      vector[2] = target.length;
      vector[3] = target.length / 2 ** 32;
      const count = preadv2(fd, vectorAddress, 1, position, RWF_NOWAIT);
      if (count >= 0) return count;
      const name = binder.errorName(binder.errno());
      if (name === "EAGAIN") return -1;
      throw new SystemCallError("preadv2", name);
    },
  };
}

function mustBeWhole(sentBytes: number, message: Buffer): void {
  if (sentBytes !== message.length) throw new SystemCallError("send", "a netlink message was not sent");
}

/** glibc's dev_t (sysmacros.h): 12 and 20 bits of the major, 8 and 24 of the minor, interleaved. */
function encodeDevice(major: number, minor: number): bigint {
  const [high, low] = [BigInt(major), BigInt(minor)];
  return ((high & 0xfffff000n) << 32n) | ((high & 0xfffn) << 8n) | ((low & 0xffffff00n) << 12n) | (low & 0xffn);
}
