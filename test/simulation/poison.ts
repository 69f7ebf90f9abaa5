/**
 * Makes every way to the machine's own time and randomness throw, for the thread that it is called in: what a simulated
 * world does must come from its seed alone.
 */
export function poisonMachine(): void {
  const refuse = (name: string) => (): never => {
    throw new Error(`the simulated world asked the machine: ${name}`);
  };
  Date.now = refuse("Date.now");
  Math.random = refuse("Math.random");
  performance.now = refuse("performance.now");
  globalThis.setTimeout = refuse("setTimeout") as unknown as typeof setTimeout;
  globalThis.setInterval = refuse("setInterval");
  Object.assign(process, { hrtime: refuse("process.hrtime") });
  crypto.getRandomValues = refuse("crypto.getRandomValues");
  crypto.randomUUID = refuse("crypto.randomUUID");
}
