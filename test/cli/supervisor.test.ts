/** When a supervisor starts, counts and ends processes, with processes that are stand-ins and a clock that jumps. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { LogFields } from "../../src/base/log.ts";
import { nullLog } from "../../src/base/log.ts";
import type { Progress, Role, Turn } from "../../src/cli/supervision.ts";
import { type Child, type Ending, mostFailures, Supervisor } from "../../src/cli/supervisor.ts";
import { HurriedClock } from "../suites/hurried-clock.ts";

class FakeChild implements Child {
  readonly pid: number;
  readonly role: Role;
  readonly ended: Promise<Ending>;
  readonly turns: Turn[] = [];
  readonly signals: string[] = [];
  readonly end: (ending: Partial<Ending>) => void;
  #listeners: ((progress: Progress["type"]) => void)[] = [];

  constructor(pid: number, role: Role) {
    this.pid = pid;
    this.role = role;
    const { promise, resolve } = Promise.withResolvers<Ending>();
    this.ended = promise;
    this.end = (ending) => resolve({ code: null, signal: null, ...ending });
  }

  onProgress(listener: (progress: Progress["type"]) => void): void {
    this.#listeners.push(listener);
  }

  tell(progress: Progress["type"]): void {
    for (const listener of this.#listeners) listener(progress);
  }

  send(turn: Turn): void {
    this.turns.push(turn);
  }

  kill(signal: NodeJS.Signals): void {
    this.signals.push(signal);
  }
}

async function settle(): Promise<void> {
  for (let turn = 0; turn < 10; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

function supervise() {
  const children: FakeChild[] = [];
  const clock = new HurriedClock();
  const said: LogFields[] = [];
  const log = { ...nullLog, error: (message: string, fields: LogFields = {}) => said.push({ message, ...fields }) };
  const supervisor = new Supervisor({
    start: (role) => {
      const child = new FakeChild(100 + children.length, role);
      children.push(child);
      return child;
    },
    clock,
    random: { fraction: () => 0.5 },
    log,
  });
  const state = { finished: undefined as Ending | undefined };
  void supervisor.run().then((ending) => (state.finished = ending));
  return { supervisor, children, clock, said, state };
}

const killed = { signal: "SIGKILL" } as const;

test("a standby is started for a server that is ready, goes on when that dies, and gets a standby of its own", async () => {
  const { children, said, state } = supervise();
  await settle();
  assert.deepEqual(
    children.map(({ role }) => role),
    ["server"],
  );
  children[0].tell("ready");
  await settle();
  assert.equal(children[1].role, "standby");
  children[0].end(killed);
  await settle();
  assert.deepEqual(children[1].turns, [{ type: "turn", takeovers: 1 }]);
  assert.equal(children.length, 2, "nothing competes with the take-over");
  assert.deepEqual([said[0]["cause"], said[0]["endedPid"], said[0]["nextPid"]], ["SIGKILL", 100, 101]);
  children[1].tell("standing-by");
  await settle();
  assert.equal(children.length, 2, "a late word of the standby that it was is no readiness");
  children[1].tell("ready");
  await settle();
  assert.deepEqual([children.length, children[2].role], [3, "standby"]);
  children[1].end({ code: 70 });
  await settle();
  assert.deepEqual(children[2].turns, [{ type: "turn", takeovers: 2 }]);
  assert.equal(said[1]["cause"], "exit code 70");
  assert.equal(state.finished, undefined);
});

test("a server that was ready may die as often as it likes", async () => {
  const { children, state } = supervise();
  for (let life = 0; life < 5 * mostFailures; life += 1) {
    const serving = children.at(-1)!;
    serving.tell("ready");
    await settle();
    serving.end(killed);
    await settle();
  }
  assert.equal(state.finished, undefined);
});

test("starts that fail are repeated with growing pauses, and the supervisor ends after some in a row", async () => {
  const { children, clock, state } = supervise();
  children[0].tell("ready");
  await settle();
  clock.slept.length = 0;
  children[0].end(killed);
  await settle();
  for (let failure = 1; failure <= mostFailures; failure += 1) {
    assert.equal(state.finished, undefined);
    children.at(-1)!.end({ code: 1 });
    await settle();
  }
  assert.deepEqual(clock.slept, [375, 750, 1500, 3000, 6000]);
  assert.deepEqual(state.finished, { code: 1, signal: null });
  assert.equal(children.length, 2 + mostFailures - 1);
});

test("a process that becomes ready is a fresh start for the count of failures", async () => {
  const { children, state } = supervise();
  for (let turn = 0; turn < 3; turn += 1) {
    for (let failure = 1; failure < mostFailures; failure += 1) {
      children.at(-1)!.end({ code: 70 });
      await settle();
    }
    children.at(-1)!.tell("ready");
  }
  assert.equal(state.finished, undefined);
});

test("the first process ends the supervisor where it refuses its settings or its store, and no later one does", async () => {
  for (const code of [1, 2]) {
    const { children, state } = supervise();
    children[0].end({ code });
    await settle();
    assert.deepEqual([state.finished?.code, children.length], [code, 1]);
  }
  const { children, state } = supervise();
  children[0].end({ code: 70 });
  await settle();
  assert.deepEqual([state.finished, children.length], [undefined, 2]);
});

test("the end: the standby is gone before the serving process is told, whose exit code it is", async () => {
  const { supervisor, children, state } = supervise();
  children[0].tell("ready");
  await settle();
  void supervisor.end("SIGTERM");
  await settle();
  assert.deepEqual([children[1].signals, children[0].signals], [["SIGKILL"], []]);
  children[1].end(killed);
  await settle();
  assert.deepEqual(children[0].signals, ["SIGTERM"]);
  void supervisor.end("SIGINT");
  assert.deepEqual(children[0].signals, ["SIGTERM", "SIGINT"]);
  children[0].end({ code: 0 });
  await settle();
  assert.deepEqual(state.finished, { code: 0, signal: null });
  assert.equal(children.length, 2);
});

test("an end while nothing serves is one, and nothing is started after it", async () => {
  const { supervisor, children, state } = supervise();
  children[0].tell("ready");
  // Neither the standby's start nor, after the death, the pause before another server is over.
  children[0].end(killed);
  await Promise.resolve();
  void supervisor.end("SIGTERM");
  await settle();
  assert.deepEqual([state.finished, children.length], [{ code: 0, signal: null }, 1]);
});

test("a standby that dies is replaced, later each time, and costs the server nothing", async () => {
  const { children, clock, state } = supervise();
  children[0].tell("ready");
  await settle();
  clock.slept.length = 0;
  for (let death = 1; death <= 3; death += 1) {
    children.at(-1)!.end(killed);
    await settle();
  }
  assert.deepEqual(clock.slept, [375, 750, 1500]);
  children.at(-1)!.tell("standing-by");
  children.at(-1)!.end(killed);
  await settle();
  assert.equal(clock.slept.at(-1), 375);
  assert.deepEqual([state.finished, children[0].signals.length], [undefined, 0]);
});
