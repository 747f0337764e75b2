#!/usr/bin/env python3
"""Numbers about the code of a checkout: how much there is, how it is cut, what is named twice.

    scripts/code-size.py [DIR]        DIR: a checkout; this one without it

Lines are all lines of a file. A function is as long as its lines from `fn` to the closing brace,
without attributes and comments above it; one inside another counts for itself and in the other.
What stands under `#[cfg(test)]` is counted apart. Percentiles are values that occur (nearest rank).
A floor is a folder of harness/, or a file there with the folder of its name.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

LONG_FUNCTION, LONG_FILE = 80, 500
KINDS = {".rs": "Rust", ".cu": "CUDA", ".cuh": "CUDA", ".py": "Python", ".sh": "shell", ".md": "Markdown"}

# What is no code, in the order in which it is to be tried at a position.
TOKEN = re.compile(
    r"""
      (?P<line>//[^\n]*)
    | (?P<block>/\*)
    | (?P<raw>\b(?:b|c)?r(?P<hashes>\#*)")
    | (?P<string>(?:\b[bc])?"(?:\\.|[^"\\])*")
    | (?P<char>\bb?'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'\n])'|'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'\n])')
    """,
    re.X | re.S,
)


def code_of(text):
    """The text with comments, strings and characters blanked out; lines and places stay."""
    out, at = [], 0
    blank = lambda piece: re.sub(r"[^\n]", " ", piece)
    while found := TOKEN.search(text, at):
        out.append(text[at : found.start()])
        end = found.end()
        if found["block"]:
            depth = 1
            while depth and (mark := re.compile(r"/\*|\*/").search(text, end)):
                depth += 1 if mark[0] == "/*" else -1
                end = mark.end()
            end = len(text) if depth else end
        elif found["raw"]:
            close = text.find('"' + found["hashes"], end)
            end = len(text) if close < 0 else close + 1 + len(found["hashes"])
        out.append(blank(text[found.start() : end]))
        at = end
    return "".join(out) + text[at:]


class Rust:
    """A Rust file, as far as these numbers need it."""

    def __init__(self, path, name):
        self.name = name
        self.text = path.read_text(encoding="utf-8")
        self.lines = self.text.count("\n")
        self.code = code_of(self.text)
        self.close = self._braces()
        self.tests = self._tests()

    def _braces(self):
        """Where each `{` is closed."""
        close, open_ = {}, []
        for brace in re.finditer(r"[{}]", self.code):
            if brace[0] == "{":
                open_.append(brace.start())
            elif open_:
                close[open_.pop()] = brace.start()
            else:
                raise ValueError(f"{self.name}: a brace too many in line {self.line(brace.start())}")
        if open_:
            raise ValueError(f"{self.name}: a brace is not closed in line {self.line(open_[-1])}")
        return close

    def line(self, at):
        return self.code.count("\n", 0, at) + 1

    def _body(self, at):
        """The brace that opens the body of the item at `at`; None for one that ends with `;`."""
        depth = 0
        for mark in re.compile(r"[()\[\]{;]").finditer(self.code, at):
            if mark[0] in "([":
                depth += 1
            elif mark[0] in ")]":
                depth -= 1
            elif depth == 0:
                return mark.start() if mark[0] == "{" else None
        return None

    def _tests(self):
        """Spans under `#[cfg(test)]`."""
        spans = []
        for found in re.finditer(r"#\[cfg\(test\)\]", self.code):
            body = self._body(found.end())
            if body is not None:
                spans.append((found.start(), self.close[body]))
        return spans

    def in_tests(self, at):
        return any(start <= at <= end for start, end in self.tests)

    def test_modules(self):
        """Names of modules in files of their own that are for tests only."""
        return re.findall(r"#\[cfg\(test\)\]\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", self.code)

    def test_lines(self):
        outer = [(a, b) for a, b in self.tests if not any(c < a and b <= d for c, d in self.tests)]
        return sum(self.line(end) - self.line(start) + 1 for start, end in outer)

    def functions(self):
        """(name, lines, whether in tests) of each that has a body."""
        for found in re.finditer(r"\bfn\s+((?:r#)?\w+)", self.code):
            body = self._body(found.end())
            if body is not None:
                lines = self.line(self.close[body]) - self.line(found.start()) + 1
                yield found[1], lines, self.in_tests(found.start())

    def types(self):
        """Names of structs, enums, traits and type aliases outside tests; no associated types."""
        members = []
        for head in re.finditer(r"(?:^|[;{}\]])\s*(?:pub(?:\([^)]*\))?\s+)?(?:unsafe\s+)?(?:impl|trait)\b", self.code):
            body = self._body(head.end())
            if body is not None:
                members.append((body, self.close[body]))
        for found in re.finditer(r"\b(struct|enum|union|trait|type)\s+([A-Z]\w*)", self.code):
            at = found.start()
            # Inside an `impl` or `trait` a `type` is an associated one, unless in a function there.
            inside = any(a < at < b and self._depth(a, at) == 1 for a, b in members)
            if not self.in_tests(at) and not (found[1] == "type" and inside):
                yield found[2]

    def _depth(self, start, at):
        between = self.code[start:at]
        return between.count("{") - between.count("}")

    def nounless_docs(self):
        """First lines of doc comments that begin with `Of `."""
        before = ""
        for line in self.text.splitlines():
            line = line.strip()
            doc = line[3:].strip() if line[:3] in ("///", "//!") else None
            if doc is not None and doc.startswith("Of ") and before[:3] != line[:3]:
                yield line
            before = line


def files_of(root):
    """Files by their path below `root`, without what is built, hidden or linked."""
    found = []
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.name in ("target", "models") or path.is_symlink():
            continue
        found += files_of(path) if path.is_dir() else [path]
    return found


def percentile(values, share):
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)] if ordered else 0


def spread(values):
    return f"median {percentile(values, 50)}, p90 {percentile(values, 90)}, max {max(values, default=0)}"


def floor_of(name):
    return Path(name).parts[1].removesuffix(".rs")


def print_table(title, rows, kinds):
    print(f"\n{title}")
    print(f"  {'':<24}" + "".join(f"{kind:>10}" for kind in kinds))
    total = defaultdict(int)
    for name, counts in rows.items():
        print(f"  {name:<24}" + "".join(f"{counts.get(kind, 0) or '-':>10}" for kind in kinds))
        for kind in kinds:
            total[kind] += counts.get(kind, 0)
    print(f"  {'all':<24}" + "".join(f"{total[kind]:>10}" for kind in kinds))


def print_twice(title, places):
    """Names with several places."""
    twice = {name: where for name, where in places.items() if len(where) > 1}
    print(f"\n{title}: {len(twice)} of {len(places)}")
    for name, where in sorted(twice.items(), key=lambda item: (-len(item[1]), item[0])):
        print(f"  {len(where)} {name:<22} {', '.join(where)}")


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    if len(sys.argv) > 2 or not (root / "harness").is_dir():
        print("usage: code-size.py [DIR], a checkout with a folder harness/", file=sys.stderr)
        return 2
    by_top, by_floor = defaultdict(lambda: defaultdict(int)), defaultdict(lambda: defaultdict(int))
    sizes, rust = {}, []
    for path in files_of(root):
        name = str(path.relative_to(root))
        kind = KINDS.get(path.suffix)
        if kind is None:
            continue
        lines = path.read_bytes().count(b"\n")
        top = name.split("/")[0] if "/" in name else "(top)"
        by_top[top][kind] += lines
        if top == "harness":
            sizes[name] = lines
            by_floor[floor_of(name) if name.count("/") > 1 else "(files)"][kind] += lines
        if kind == "Rust" and top in ("harness", "tests"):
            rust.append(Rust(path, name))
    harness = [file for file in rust if file.name.startswith("harness/")]
    for_tests = {
        str(Path(file.name).parent / module) if Path(file.name).stem in ("mod", "lib", "main")
        else str(Path(file.name).with_suffix("") / module)
        for file in harness
        for module in file.test_modules()
    }  # fmt: skip
    is_test = {f.name: any(f.name in (m + ".rs", m + "/mod.rs") for m in for_tests) for f in harness}

    print_table("Lines by top folder", by_top, ["Rust", "CUDA", "Python", "shell", "Markdown"])
    print_table("Lines by folder of harness/", by_floor, ["Rust", "CUDA"])
    inside = sum(f.lines if is_test[f.name] else f.test_lines() for f in harness)
    print(f"  Rust in tests inside harness/: {inside}")

    print("\nFiles of harness/")
    for kind in ("Rust", "CUDA"):
        lines = [n for name, n in sizes.items() if KINDS[Path(name).suffix] == kind]
        print(f"  {kind}: {len(lines)} files, {spread(lines)} lines")
    long = {name: n for name, n in sizes.items() if n > LONG_FILE and KINDS[Path(name).suffix] in ("Rust", "CUDA")}
    print(f"  over {LONG_FILE} lines: {len(long)}")
    for name, lines in sorted(long.items(), key=lambda item: -item[1]):
        print(f"    {lines:>5} {name}")

    functions = [(n, lines, t or is_test[f.name], f.name) for f in harness for n, lines, t in f.functions()]
    print("\nFunctions of harness/ (Rust)")
    for what, of in (("all", functions), ("outside tests", [f for f in functions if not f[2]])):
        print(f"  {what}: {len(of)} functions, {spread([f[1] for f in of])} lines")
    others = [lines for f in rust if f not in harness for _, lines, _ in f.functions()]
    print(f"  for comparison, in tests/: {len(others)} functions, {spread(others)} lines")
    long = sorted((f for f in functions if f[1] > LONG_FUNCTION), key=lambda f: -f[1])
    print(f"  over {LONG_FUNCTION} lines: {len(long)}, of these {sum(f[2] for f in long)} in tests")
    for name, lines, test, file in long:
        print(f"    {lines:>5} {name:<44} {file}{' (test)' if test else ''}")

    types, within = defaultdict(list), defaultdict(list)
    for file in harness:
        if not is_test[file.name] and "/benches/" not in file.name:
            for name in file.types():
                types[name].append(file.name.removeprefix("harness/"))
                within[f"{floor_of(file.name)}: {name}"].append(file.name.removeprefix("harness/"))
    print_twice("Type names of harness/ outside tests that are defined more than once", types)
    print_twice("Type names that are defined more than once within a floor", within)

    docs = [(f.name, line) for f in harness for line in f.nounless_docs()]
    print(f"\nDoc comments of harness/ that begin with `Of `: {len(docs)}, "
          f"with `Of the `: {sum('Of the ' in line[:11] for _, line in docs)}")  # fmt: skip
    for name, line in docs:
        print(f"  {name}: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
