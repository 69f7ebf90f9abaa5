/**
 * A mutant: one small, wrong change of the engine's source, made to a copy, that the tests must catch. The list of them
 * shows that the oracle of the simulator can fail: each stands for a mistake that somebody could make, and that would
 * lose data, serve wrong data, let a second writer in, or answer errors without need.
 *
 * `find` must stand exactly once in `file`: a mutant whose text is gone fails loudly and is written anew, never
 * skipped. Changes that nothing can observe, because another check covers them, are no mutants and do not belong here.
 */
export interface Mutant {
  /** Kebab-case, unique. */
  name: string;
  /** Path from the root of the repository. */
  file: string;
  find: string;
  replace: string;
  /** What a user would lose by it. */
  why: string;
  /** The test that must fail, for code that the simulator replaces or cannot bring to it; undefined: the simulator. */
  test?: { file: string; name: string };
}
