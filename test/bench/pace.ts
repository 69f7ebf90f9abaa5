/** How long the benchmark takes its time: the default is for every day, "long" for numbers to be quoted. */
export interface Pace {
  rounds: number;
  /** Of one run bounded in time. */
  seconds: number;
  /** Of one run bounded in bytes. */
  writeBytes: number;
}

const mib = 1024 ** 2;

export const quickPace: Pace = { rounds: 5, seconds: 0.5, writeBytes: 256 * mib };
export const longPace: Pace = { rounds: 9, seconds: 3, writeBytes: 512 * mib };
