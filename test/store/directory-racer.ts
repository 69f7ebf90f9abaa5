/** A process of test/store/directory.test.ts: tries to create each key given, prints the ones it won. */
import { DirectoryStore } from "../../src/store/directory.ts";

const [root, name, ...keys] = process.argv.slice(2);
const store = new DirectoryStore({ root });
const body = Buffer.from(`written by ${name}`);
const won: string[] = [];
for (const key of keys) {
  if ((await store.putIfAbsent(key, [body])) === "created") won.push(key);
}
process.stdout.write(JSON.stringify(won));
