/**
 * Pages of a listing, cut from sorted keys: shared by the stores that hold their keys themselves (memory, directory),
 * so that both page, group by delimiter and go on after a page exactly as S3 does.
 */
import { assert } from "../base/assert.ts";
import type { ListedObject, ListOptions, ListPage } from "./object-store.ts";

export const MAX_LIST_LIMIT = 1000;

/** The limit of a request, checked. */
export function listLimit(options: ListOptions): number {
  const limit = options.limit ?? MAX_LIST_LIMIT;
  assert(Number.isInteger(limit) && limit >= 1 && limit <= MAX_LIST_LIMIT, `list limit out of range: ${limit}`);
  return limit;
}

/**
 * The page of `sorted` (keys under `prefix`, ascending, all greater than `after`) that a list call answers. Keys that
 * share a prefix up to the delimiter count as one entry, as in S3. A group that `after` stands in or on is not
 * reported again.
 */
export function cutPage(prefix: string, sorted: Iterable<ListedObject>, options: ListOptions): ListPage {
  const limit = listLimit(options);
  const page: ListPage = { objects: [], prefixes: [], next: undefined };
  let lastEntry: string | undefined;
  let group: string | undefined;
  for (const object of sorted) {
    if (group !== undefined && object.key.startsWith(group)) continue;
    group = groupOf(prefix, object.key, options.delimiter);
    if (group !== undefined && options.after !== undefined && isAtOrInside(options.after, group)) continue;
    if (page.objects.length + page.prefixes.length === limit) {
      page.next = lastEntry;
      return page;
    }
    if (group === undefined) page.objects.push(object);
    else page.prefixes.push(group);
    lastEntry = group ?? object.key;
  }
  return page;
}

function groupOf(prefix: string, key: string, delimiter: string | undefined): string | undefined {
  if (delimiter === undefined) return undefined;
  const end = key.indexOf(delimiter, prefix.length);
  return end === -1 ? undefined : key.slice(0, end + 1);
}

function isAtOrInside(after: string, group: string): boolean {
  return after === group || after.startsWith(group);
}
