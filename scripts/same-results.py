#!/usr/bin/env python3
"""Shows that two builds of quantbench do the same: what a change of structure has to leave as it is.

    scripts/same-results.py OLD NEW [--only PART,...] [--short] [--model PATH] [--expect ITEM]...
                            [--keep DIR] [-- OPTION...]

Runs both programs on the same work, each in a fresh folder and without the cache of quantized
weights, and compares what they write: byte for byte, but for what is measured with a clock and the
names that a run gets. What is left out is printed, with the reasons.

parts: main        the bare command, as `cargo run --release` gives it
       sweep       --batch 1,2 --context 64,128 --kv fp16,fp32
       suite       a suite file: the embedded model, the same from a folder, a synthetic one, and
                   the one of --model
       one-thread  a short run with --threads 1: its memory columns too are the same every time
       cli         helps, lists, messages, exit codes, dry runs, failed cells
       render      report, compare, baselines and history over kept rows

--short    few windows, items and repetitions: minutes become seconds
--model    folder or GGUF file that the suite measures too, briefly
--expect   a difference that is meant, as this script names it: `results.csv:COLUMN` for a column
           that only one of the two has, `run.json:cells[].KEY` for a key, else the name of an item
           such as `list kv`
--keep     where everything is written and stays; without it a temporary folder that stays only
           where something differs
OPTION     more for every run of main, sweep, suite and one-thread, such as `--limit 2`

Exit codes: 0 the same, 1 something differs, 2 wrong usage.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["main", "sweep", "suite", "one-thread", "cli", "render"]
TABLES = ["results.csv", "quality.csv", "pairs.csv", "windows.csv", "choices.csv"]
# Not asked for, and as good a witness: which pairs and repetitions there are.
MORE_TABLES = ["speed_pairs.csv", "samples.csv"]

NAMED = "the name that a run gets: time and chance"
CLOCK = "measured with a clock"
THREADS = "threads that need their tiles at the same moment need more together (compared in one-thread)"
SYSTEM = "the resident set as the system sees it"

# Columns that are not compared, with the reasons; `warnings` is compared without the sentences
# that are about time.
LEFT_OUT = {
    "*": {"run_id": NAMED},
    "results.csv": {
        **{
            f"{phase}_tok_s{what}": CLOCK
            for phase in ("prefill", "decode")
            for what in ("", "_sd", "_ci_low", "_ci_high")
        },
        "ttft_s": CLOCK,
        "quantize_s": CLOCK,
        "load_s": CLOCK,
        "mbu": "a speed over a measured rate of the machine",
        "mfu": "a speed over a measured rate of the machine",
        "peak_rss_bytes": SYSTEM,
        "workspace_bytes": THREADS,
        "peak_memory_bytes": THREADS,
    },
    "speed_pairs.csv": {"ratio": CLOCK, "ratio_ci_low": CLOCK, "ratio_ci_high": CLOCK},
    "samples.csv": {"seconds": CLOCK, "process": NAMED, "ended_at_s": CLOCK},
    "run.json": {
        "started_at": CLOCK,
        "finished_at": CLOCK,
        "duration_s": CLOCK,
        "seconds": CLOCK,
        "git_commit": "the build, not what it does",
        "prefill_noise": CLOCK,
        "decode_noise": CLOCK,
        "roofline": "measured rates of the machine",
        "gpu": "what a GPU did while it was timed",
        "quantize_peak_rss_bytes": SYSTEM,
        "quantize_peak_bytes": THREADS,
        "quantize_device_peak_bytes": THREADS,
        "peak_bytes_by_phase": THREADS,
    },
}

# Warnings about time: as sentences (in rows, and of the run) and by kind (in run.json).
TIMELY_WORDS = re.compile(
    r"generated tokens in .* are too few to time|^the first timed |^the warm-up of "
    r"|^(prefill|decode) became |^(prefill|decode) speed varied by |^after \d+ repetitions, the most"
    r"|^the machine was busy|^the machine's own rates were not measured"
)
TIMELY_KINDS = {
    "few-generated-tokens", "slow-first-run", "slow-warmup", "drift", "wide-spread", "still-noisy",
    "busy-machine", "rates-not-measured",
}  # fmt: skip

SHORT = "--limit 2 --calibration-limit 2 --choices-limit 4 --reps 1 --gen-tokens 4 --no-roofline"
# Options about texts: a synthetic model refuses them.
OF_TEXTS = {"limit", "calibration-limit", "choices-limit", "choices", "datasets", "calibration", "tokenizer"}


class Usage(Exception):
    pass


class Report:
    """The items that were compared: prints a line for each, and remembers what differs."""

    def __init__(self, expected):
        self.expected = set(expected)
        self.met, self.same, self.differ = set(), 0, []

    def is_expected(self, name):
        self.met |= self.expected & {name}
        return name in self.expected

    def item(self, part, name, what, differences):
        """`differences` are sentences, the first one first; none where the two are the same."""
        verdict = "same"
        if differences and self.is_expected(name):
            verdict = "expected"
        elif differences:
            verdict = "DIFFERS"
            self.differ.append(f"{part}: {name}")
        else:
            self.same += 1
        shown = name if len(name) <= 44 else name[:41] + "..."
        print(f"  {part:<11} {shown:<44} {what:<34} {verdict}")
        shown = differences if verdict == "DIFFERS" else []
        for line in shown[:4]:
            print(f"      {line}")
        if len(shown) > 4:
            print(f"      and {len(shown) - 4} more")
        sys.stdout.flush()


class Side:
    """One of the two programs, in a folder of its own in which everything has the same names."""

    def __init__(self, name, program, folder):
        self.name, self.program, self.folder = name, program, folder
        folder.mkdir(parents=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("QUANTBENCH_")}
        self.environment["QUANTBENCH_CACHE"] = "off"
        # Messages wrap at the width of a terminal.
        self.environment["COLUMNS"] = "100"

    def run(self, args, folder="."):
        """Exit code, stdout, stderr and seconds. The program goes by one name in both."""
        cwd = self.folder / folder
        cwd.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        ended = subprocess.run(
            ["quantbench", *map(str, args)],
            executable=self.program,
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        text = [stream.decode("utf-8", "replace") for stream in (ended.stdout, ended.stderr)]
        return ended.returncode, *text, time.monotonic() - start


def shortened(text, most=160):
    text = text if isinstance(text, str) else json.dumps(text)
    return repr(text if len(text) <= most else text[:most] + " ...")


def lasting_words(joined):
    """Warnings without those that are about time."""
    return "; ".join(words for words in joined.split("; ") if not TIMELY_WORDS.search(words))


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    header = rows[0] if rows else []
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"{path}: line {number + 1} has {len(row)} columns of {len(header)}")
    return header, [dict(zip(header, row)) for row in rows[1:]]


def left_out(name, memory):
    """Columns or keys of `name` that are not compared; `memory`: whether those of THREADS are."""
    both = {**LEFT_OUT["*"], **LEFT_OUT.get(name, {})}
    return {column for column, why in both.items() if not (memory and why is THREADS)}


def compare_tables(report, name, old, new, memory):
    """Differences of two CSV files, and how many columns and rows were compared."""
    (old_head, old_rows), (new_head, new_rows) = read_table(old), read_table(new)
    differences = []
    for here, there, which in ((old_head, new_head, "old"), (new_head, old_head, "new")):
        for column in here:
            if column not in there and not report.is_expected(f"{name}:{column}"):
                differences.append(f"column `{column}` is only in the {which} table")
    common = [column for column in old_head if column in new_head]
    if common != [column for column in new_head if column in old_head]:
        differences.append("the columns stand in another order")
    if len(old_rows) != len(new_rows):
        differences.append(f"{len(old_rows)} rows before, {len(new_rows)} after")
    skip = left_out(name, memory)
    compared = [column for column in common if column not in skip]
    count = {}
    for number, (a, b) in enumerate(zip(old_rows, new_rows), start=1):
        for column in compared:
            x, y = a[column], b[column]
            if column == "warnings":
                x, y = lasting_words(x), lasting_words(y)
            if x != y:
                first = f"row {number}, column `{column}`: {shortened(x)} before, {shortened(y)} after"
                count.setdefault(column, [first, 0])[1] += 1
    for first, rows in count.values():
        differences.append(first + (f" (and {rows - 1} more rows)" if rows > 1 else ""))
    return differences, f"{len(compared)} of {len(common)} columns, {len(old_rows)} rows"


def lasting_json(value, skip):
    """A JSON value without what is left out."""
    if isinstance(value, dict):
        return {k: lasting_json(v, skip) for k, v in value.items() if k not in skip}
    if isinstance(value, list):
        kept = [v for v in value if not (isinstance(v, dict) and v.get("kind") in TIMELY_KINDS)]
        kept = [v for v in kept if not (isinstance(v, str) and TIMELY_WORDS.search(v))]
        return [lasting_json(v, skip) for v in kept]
    return value


def leaves(value, path=""):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


def compare_json(report, name, old, new, memory):
    skip = left_out(name, memory)
    # A list of warnings that are all about time is as good as none.
    a, b = (
        {k: v for k, v in leaves(lasting_json(json.loads(p.read_text()), skip)) if v != []}
        for p in (old, new)
    )
    differences = []
    for path in [*a, *(p for p in b if p not in a)]:
        if path not in a or path not in b:
            which = "old" if path in a else "new"
            if not report.is_expected(name + ":" + re.sub(r"\[\d+\]", "[]", path)):
                differences.append(f"`{path}` is only in the {which} file")
        elif json.dumps(a[path]) != json.dumps(b[path]):
            differences.append(f"`{path}`: {shortened(a[path])} before, {shortened(b[path])} after")
    return differences, f"{len(a)} values"


def compare_run(report, part, sides, folder, memory=False, top=False):
    """The tables of a run in `folder`; the top of a suite has only some."""
    old, new = (side.folder / folder for side in sides)
    label = "" if folder.name == "latest" else f"{folder.name}/"
    for name in TABLES + MORE_TABLES + ["run.json"]:
        a, b = old / name, new / name
        if not a.exists() and not b.exists():
            if not top:
                report.item(part, label + name, "", ["neither run wrote it"])
            continue
        if not a.exists() or not b.exists():
            differences, what = [f"only the {'old' if a.exists() else 'new'} run wrote it"], ""
        elif name == "run.json":
            differences, what = compare_json(report, name, a, b, memory)
        else:
            differences, what = compare_tables(report, name, a, b, memory)
        report.item(part, label + name, what, differences)
    compare_listing(report, part, label + "(list of files)", old, new)


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def compare_listing(report, part, name, old, new):
    a, b = files_below(old), files_below(new)
    only = [f"only before: {f}" for f in a if f not in b] + [f"only after: {f}" for f in b if f not in a]
    report.item(part, name, f"{len(a)} files", only)


def compare_folders(report, part, name, sides, folder):
    """Every file below `folder`, byte for byte."""
    old, new = (side.folder / folder for side in sides)
    differences = []
    for file in sorted({*files_below(old), *files_below(new)}):
        a, b = old / file, new / file
        if not a.exists() or not b.exists():
            differences.append(f"{file}: only {'before' if a.exists() else 'after'}")
        elif a.read_bytes() != b.read_bytes():
            differences.append(f"{file}: {first_difference(a.read_bytes(), b.read_bytes())}")
    report.item(part, name, f"{len(files_below(old))} files", differences)


def first_difference(a, b):
    if isinstance(a, bytes):
        if b"\0" in a:
            return f"other bytes ({len(a)} before, {len(b)} after)"
        a, b = a.decode("utf-8", "replace"), b.decode("utf-8", "replace")
    lines, others = a.splitlines(), b.splitlines()
    for number, (x, y) in enumerate(zip(lines, others), start=1):
        if x != y:
            at = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
            at = max(0, at - 40)
            return f"line {number}: {shortened(x[at:])} before, {shortened(y[at:])} after"
    return f"{len(lines)} lines before, {len(others)} after"


def command(report, part, sides, args, folder=".", name=None, words=True, code=None):
    """Runs both with `args`; compares exit codes and, unless `words` is false, what they say.

    `code` is the exit code that the old program has to have: else the item shows nothing.
    """
    (a, old_out, old_err, _), (b, new_out, new_err, _) = (s.run(args, folder) for s in sides)
    name = name or " ".join(map(str, args))
    differences = []
    if a != b:
        differences.append(f"exit code {a} before, {b} after")
    if words:
        for stream, x, y in (("stdout", old_out, new_out), ("stderr", old_err, new_err)):
            if x != y:
                differences.append(f"{stream}: {first_difference(x, y)}")
    if code is not None and a != code:
        differences.append(f"exit code {a} where this item is about {code}: {old_err.strip()[:200]}")
    if "panicked" in old_err + new_err:
        differences.append("a panic")
    report.item(part, name, f"exit {a}" + (", words" if words else ""), differences)


def measured(report, part, sides, args, code=0):
    """Runs both; says how long they took and how they ended."""
    ended = [side.run(args, part) for side in sides]
    differences = [
        f"{side.name}: exit code {e[0]}: {' '.join(e[2].strip().splitlines()[-3:])}"
        for side, e in zip(sides, ended)
        if e[0] != code
    ]
    took = f"{ended[0][3]:.0f} s, then {ended[1][3]:.0f} s"
    line = " ".join(map(str, args))
    report.item(part, f"quantbench {line}".strip(), took, differences)


def main_part(report, sides, options, _):
    measured(report, "main", sides, options)
    compare_run(report, "main", sides, Path("main/reports/latest"))


def sweep_part(report, sides, options, _):
    lists = ["--batch", "1,2", "--context", "64,128", "--kv", "fp16,fp32"]
    measured(report, "sweep", sides, ["run", *lists, *options])
    compare_run(report, "sweep", sides, Path("sweep/reports/latest"))


def one_thread_part(report, sides, options, _):
    few = SHORT.split() if not options else options
    lists = ["--threads", "1", "--batch", "2,1", "--context", "48"]
    precisions = "fp16,fp8,int8-w8a8,rtn-int4,awq-int4-g64,gptq-int3"
    measured(report, "one-thread", sides, ["run", "-p", precisions, *lists, *few])
    compare_run(report, "one-thread", sides, Path("one-thread/reports/latest"), memory=True)


def toml(name, value):
    return f"{name} = {'true' if value is None else json.dumps(value)}\n"


def settings_of(options):
    """`--limit 2 --no-kl` as {limit: "2", no-kl: None}."""
    settings, words = {}, list(options)
    while words:
        name = words.pop(0)
        if not name.startswith("--"):
            raise Usage(f"`{name}` after `--`: give options by their long names, as --limit 2")
        name, equals, value = name[2:].partition("=")
        takes = bool(words) and not words[0].startswith("--")
        settings[name] = value if equals else words.pop(0) if takes else None
    return settings


def suite_part(report, sides, options, model):
    settings = settings_of(options)
    texts = "".join(toml(k, v) for k, v in settings.items() if k in OF_TEXTS)
    lines = {"gen-tokens": 8, "reps": 2, "seed": 3} | {
        k: v for k, v in settings.items() if k not in OF_TEXTS
    }
    text = (
        'precisions = ["fp16", "int8", "fp8-w8a8", "rtn-int3-g64", "gptq-int4"]\n'
        'kv = ["fp16", "fp32"]\nbatch = "1..4 x2"\ncontext = [32, 96]\n'
        + "".join(toml(k, v) for k, v in lines.items())
        + '\n[precision.fp16]\nbatch = 1\n\n[precision.int8]\nkv = "fp32"\n'
        + '\n[compare]\nmax_memory_increase = "2%"\n'
        + '\n[[model]]\nprotocol = ["gptq-v1@512", "hf-strided-v2@256", "llamacpp-v1@256"]\n'
        + ("" if "limit" in settings else "limit = 24\n")
        + texts
        + '\n[[model]]\nname = "from-a-folder"\npath = '
        + json.dumps(str(ROOT / "datasets/embedded-model"))
        + '\nprecisions = ["fp16", "awq-int4-g64", "gptq-int4-noao"]\nno-noise-floor = true\n'
        + ("" if "limit" in settings else "limit = 6\n")
        + texts
        + '\n[[model]]\npath = "synthetic:smollm2-135m"\nprecisions = ["fp16", "rtn-int4"]\n'
        + "batch = 1\ncontext = 32\n"
    )
    if model:
        brief = {"limit": 2, "calibration-limit": 2, "choices-limit": 6}
        brief |= {k: v for k, v in settings.items() if k in OF_TEXTS}
        text += '\n[[model]]\nname = "given"\npath = ' + json.dumps(str(model.resolve()))
        text += '\nprecisions = ["fp16", "int8", "rtn-int4"]\nbatch = 1\ncontext = 32\n'
        text += "".join(toml(k, v) for k, v in brief.items())
    for side in sides:
        (side.folder / "suite").mkdir()
        (side.folder / "suite/suite.toml").write_text(text)
    command(report, "suite", sides, ["run", "--suite", "suite.toml", "--dry-run"], "suite")
    measured(report, "suite", sides, ["run", "--suite", "suite.toml"])
    command(report, "suite", sides, ["run", "--suite", "suite.toml", "--dry-run"], "suite", "dry run afterwards")
    out = Path("suite/reports/latest")
    compare_run(report, "suite", sides, out, top=True)
    names = {p.parent.name for side in sides for p in (side.folder / out).glob("*/results.csv")}
    for name in sorted(names):
        compare_run(report, "suite", sides, out / name)


def words_of_help(text, heading):
    """First words of the lines below a heading of a help text."""
    section = re.search(rf"^{heading}:\n((?:  .*\n)+)", text, re.M)
    return re.findall(r"^  (\S+)", section[1], re.M) if section else []


def cli_part(report, sides, _, __):
    inputs(sides, "cli")

    def cli(*args, code=None, **more):
        command(report, "cli", sides, args, "cli", code=code, **more)

    # Both programs' own lists, so that a new entry shows.
    helps = [side.run(["--help"])[1] for side in sides]
    subcommands = sorted({w for text in helps for w in words_of_help(text, "Commands")})
    for args in (["--help"], ["-h"], ["--version"], ["help"]):
        cli(*args)
    for sub in subcommands:
        cli(sub, "--help")
        cli(sub, "-h")
    values = {
        value
        for side in sides
        for found in re.findall(r"possible values: ([^\]]*)", side.run(["list", "--help"])[1])
        for value in re.split(r",\s*", found)
    }
    cli("list", code=0)
    for value in sorted(values):
        cli("list", value, code=0)
    cli("list", "nosuch", code=2)

    # Refused before anything is measured.
    refused = """
        nosuch | run extra | run --nosuchflag | report | report nosuch | report inputs | compare
        compare nosuch nosuch | compare inputs/run | compare inputs/run inputs/nosuch
        compare --baseline a/b inputs/run | compare --max-kl-increase x inputs/run inputs/run
        compare --kl-floor -1 inputs/run inputs/run | compare --format xml inputs/run inputs/run
        compare --baseline x inputs/run inputs/run | compare inputs/run inputs/no-csv
        compare inputs/run inputs/damaged | report inputs/damaged | report inputs/no-info
        history nosuch | history --history inputs/run/results.csv inputs/damaged
        run -p int5 | run -p gptq-int4-g7 | run -p awq | run -p fp16,dir:nosuch
        run --reference nosuch | run --reference fp16 --no-reference | run --kv int1 | run --kv fp8x
        run --device tpu | run --device cuda:x | run --device cuda | run --kernel nosuch
        run --batch 0 | run --batch 1,0 | run --batch x | run --context 0 | run --context 16 --prompt-tokens 8
        run --gen-tokens 0 | run --limit 0 | run --calibration-limit 0 | run --choices-limit 0 | run --threads 0
        run --threads 9999 | run --reps 0 | run --reps 2 --max-noise 2% | run --max-noise 200%
        run --max-noise 2% --min-reps 9 --max-reps 8 | run --max-noise 2% --max-reps 3 | run --min-reps 3
        run --processes 0 | run --timeout 0 | run --timeout x | run --memory-limit 12X | run --kl-cache 0
        run --cache-limit 0 | run --cache a --no-cache | run --seed x | run --batch 99999999
        run --protocol nosuch | run --protocol gptq-v1@1 | run --protocol hf-strided-v2@8:9
        run --protocol gptq-v1@512 --window 64 | run --window 1 | run --prompt-tokens 5000
        run --datasets nosuch | run --datasets inputs/short.txt | run --datasets inputs/lines.jsonl#nosuch
        run --datasets inputs/lines.jsonl | run --choices inputs/lines.jsonl | run --calibration nosuch
        run --datasets inputs/long.txt --calibration inputs/long.txt | run --choices nosuch | run --tokenizer nosuch.json
        run --tokenizer inputs/lines.jsonl | run --model nosuch | run --model inputs | run --model inputs/noise.bin
        run --model inputs/cut.gguf | run --model inputs/model-bad-config | run --model inputs/model-other-shape
        run --model inputs/model-cut | run --model inputs/model-no-tokenizer | run --model synthetic:gpt-5
        run --model synthetic-fp16:gpt-5 | run --model synthetic:smollm2-135m --datasets prose
        run --model synthetic:smollm2-135m --context 9000 | run --model hub:x
        run --out /proc/nosuch/out | run --turns /proc/nosuch/turns | run --thresholds nosuch.toml
        run --thresholds inputs/thresholds-bad.toml | run --save-baseline a/b | run --suite nosuch.toml
        run --suite inputs/suite-key.toml | run --suite inputs/suite-value.toml | run --suite inputs/suite-twice.toml
        run --suite inputs/suite-precision.toml | run --suite inputs/suite-model.toml | run --suite inputs/suite-range.toml
        run --suite inputs/suite-names.toml | run --suite inputs/noise.bin
    """
    for line in re.split(r"\||\n", refused):
        if args := line.split():
            # Where one of these is accepted after all it shall not take minutes.
            more = ["--out", "out"] if args[0] == "run" and "--out" not in args else []
            more += ["--timeout", "1"] if args[0] == "run" and "--timeout" not in args else []
            cli(*args, *more, code=2, name=line.strip())
    cli("run", "--baseline", "nosuch", code=4)
    cli("compare", "--baseline", "nosuch", "inputs/run", code=4)
    cli("compare", "nosuch", "inputs/run", code=4)
    cli("compare", "inputs/run", "inputs/sweep", code=4)
    cli("compare", "inputs/run", "inputs/worse", code=1)
    cli("compare", "inputs/run", "inputs/run", code=0)

    cli("run", "--dry-run", "--out", "dry", code=0)
    cli("run", "--dry-run", "--batch", "1,1,2", "--kv", "fp32,fp16", "--out", "dry", code=0)
    cli("run", "--dry-run", "--suite", "inputs/suite-good.toml", "--out", "dry", code=0)
    cli("run", "--dry-run", "--suite", "inputs/suite-good.toml", "-p", "int8", "--out", "dry", code=0)

    # Measured. What these say holds times: codes and rows are compared.
    few = ["--threads", "1", *SHORT.split(), "--no-noise-floor", "--choices", "none", "--out"]
    for name, code, args in [
        ("fine", 0, ["-p", "fp16,int8"]),
        ("out-of-memory", 3, ["-p", "fp16,rtn-int4", "--memory-limit", "12M"]),
        ("larger-batch-out-of-memory", 3, ["-p", "fp16,int8", "--memory-limit", "20M", "--batch", "1,64,128"]),
        ("unsupported", 3, ["-p", "fp16", "--model", "inputs/model-quantized"]),
        ("timeout", 3, ["-p", "fp16", "--timeout", "0.01"]),
        ("no-reference", 0, ["-p", "rtn-int4", "--no-reference", "--no-kl"]),
    ]:
        args = ["run", *args, *few, name]
        command(report, "cli", sides, args, "cli", f"{name} (a run)", words=False, code=code)
        compare_statuses(report, sides, name)
    cli("run", "-p", "fp16,int8", *few, "fine", "--quiet", "--dry-run", code=0, name="dry run afterwards")
    command(report, "cli", sides, ["run", "-p", "fp16,int8", *few, "fine", "--baseline", "nosuch"], "cli", code=4)


def compare_statuses(report, sides, name):
    old, new = (side.folder / "cli" / name / "results.csv" for side in sides)
    if name == "timeout" and old.exists() and new.exists():
        # How far it came is a matter of time.
        a, b = ([r["status"] for r in read_table(p)[1]] for p in (old, new))
        report.item("cli", f"{name}/results.csv", "statuses", [f"{a} before, {b} after"] if a != b else [])
    else:
        compare_run(report, "cli", sides, Path("cli") / name, memory=True)


def inputs(sides, part):
    """Folders and files that commands are given, under the same names for both."""
    for side in sides:
        folder = side.folder / part / "inputs"
        folder.mkdir(parents=True)
        for run in ("run", "sweep", "failed"):
            shutil.copytree(ROOT / "tests/golden/report" / run, folder / run)
        kept = sorted((ROOT / "reports").glob("*-embedded/run.json"))
        if kept:
            (folder / "kept").mkdir()
            for file in [*kept[0].parent.glob("*.csv"), kept[0]]:
                shutil.copy(file, folder / "kept")
        worse = shutil.copytree(folder / "run", folder / "worse")
        header, rows = read_table(worse / "results.csv")
        with open(worse / "results.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for row in rows:
                if row["peak_memory_bytes"]:
                    row["peak_memory_bytes"] = str(2 * int(row["peak_memory_bytes"]))
                writer.writerow(row.values())
        damaged = shutil.copytree(folder / "run", folder / "damaged")
        text = (damaged / "quality.csv").read_text()
        (damaged / "quality.csv").write_text(text.replace(",", ",x", 40))
        shutil.copytree(folder / "run", folder / "no-csv")
        (folder / "no-csv/results.csv").unlink()
        shutil.copytree(folder / "run", folder / "no-info")
        (folder / "no-info/run.json").unlink()

        (folder / "short.txt").write_text("Three short words.\n")
        (folder / "long.txt").write_text("".join(f"Line {i} of a text.\n" for i in range(2000)))
        (folder / "lines.jsonl").write_text('{"text": "a"}\n{"text": 7}\n')
        (folder / "noise.bin").write_bytes(bytes([7]) * 100)
        (folder / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
        (folder / "thresholds-bad.toml").write_text('[compare]\nmax_memory = "1%"\n')
        for name, text in {
            "key": "preciions = ['fp16']\n",
            "value": "reps = true\n",
            "twice": "reps = 1\nreps = 2\n",
            "precision": "precisions = ['fp16']\n[precision.int8]\nbatch = 1\n",
            "model": "model = []\n",
            "range": "batch = '4..1'\n",
            "names": "[[model]]\n[[model]]\n",
            "good": "precisions = ['fp16', 'int8', 'gptq-int4']\nbatch = '1..4 x2'\ncontext = [16, 32]\n"
            "reps = 1\n[precision.int8]\nkv = ['fp32']\n",
        }.items():
            (folder / f"suite-{name}.toml").write_text(text)

        model = ROOT / "datasets/embedded-model"
        for name in ("bad-config", "other-shape", "cut", "no-tokenizer", "quantized"):
            copy = folder / f"model-{name}"
            copy.mkdir()
            for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
                shutil.copy(model / file, copy)
            (copy / "model.safetensors").symlink_to(model / "model.safetensors")
        config = json.loads((model / "config.json").read_text())
        (folder / "model-bad-config/config.json").write_text("{")
        other = config | {"hidden_size": 2 * config["hidden_size"]}
        (folder / "model-other-shape/config.json").write_text(json.dumps(other))
        (folder / "model-cut/model.safetensors").unlink()
        (folder / "model-cut/model.safetensors").write_bytes(
            (model / "model.safetensors").read_bytes()[:100_000]
        )
        (folder / "model-no-tokenizer/tokenizer.json").unlink()
        quantized = config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
        (folder / "model-quantized/config.json").write_text(json.dumps(quantized))


def render_part(report, sides, _, __):
    """Reports from kept rows alone: every byte of pages, pictures, comparisons and baselines."""
    inputs(sides, "render")

    def render(*args, **more):
        command(report, "render", sides, args, "render", **more)

    runs = [p.name for p in (sides[0].folder / "render/inputs").iterdir() if (p / "run.json").exists()]
    good = sorted(set(runs) & {"run", "sweep", "failed", "kept"})
    for run in good:
        render("report", f"inputs/{run}", code=0)
        compare_folders(report, "render", f"files of inputs/{run}", sides, Path("render/inputs") / run)
    for format in ("terminal", "markdown", "json", "junit"):
        for new in ("worse", "sweep", "failed"):
            render("compare", "inputs/run", f"inputs/{new}", "--format", format)
    if "kept" in good:
        render("compare", "inputs/kept", "inputs/kept", "--format", "markdown", "--output", "kept.md")
    render("compare", "--save-baseline", "main", "--baselines", "baselines", "inputs/run", code=0)
    render("compare", "--baseline", "main", "--baselines", "baselines", "inputs/worse", code=1)
    if (sides[0].folder / "render/baselines/main").exists():
        compare_folders(report, "render", "the saved baseline", sides, Path("render/baselines/main"))
        render("report", "baselines/main", code=0)
        compare_folders(report, "render", "the saved baseline, rendered", sides, Path("render/baselines/main"))
    histories = [f"inputs/{run}" for run in good]
    render("history", *histories, "--history", "history/history.csv", name="history RUN...", code=0)
    render("history", "--history", "history/history.csv", code=0)
    compare_folders(report, "render", "the history and its trend", sides, Path("render/history"))


def say_what_is_left_out():
    print("\nnot compared:")
    for table, columns in LEFT_OUT.items():
        by_reason = {}
        for column, why in columns.items():
            by_reason.setdefault(why, []).append(column)
        for why, names in by_reason.items():
            where = "every table and run.json" if table == "*" else table
            print(f"  {where}: {', '.join(names)}: {why}")
    print("  warnings (rows and run.json): those about time, and so decided by a clock: " + ", ".join(sorted(TIMELY_KINDS)))


def arguments():
    typed = sys.argv[1:]
    at = typed.index("--") if "--" in typed else len(typed)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--expect", action="append", default=[])
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args(typed[:at])
    args.parts = args.only.split(",")
    for part in args.parts:
        if part not in PARTS:
            raise Usage(f"--only {part}: the parts are {', '.join(PARTS)}")
    for program in (args.old, args.new):
        if not os.access(program, os.X_OK) or program.is_dir():
            raise Usage(f"{program} is no program")
    if args.model and not args.model.exists():
        raise Usage(f"--model {args.model} does not exist")
    if args.keep and args.keep.exists() and any(args.keep.iterdir()):
        raise Usage(f"--keep {args.keep} is not empty")
    args.options = (SHORT.split() if args.short else []) + typed[at + 1 :]
    # The later of two values counts.
    settings = settings_of(args.options)
    args.options = [w for k, v in settings.items() for w in ([f"--{k}"] if v is None else [f"--{k}", v])]
    return args


def main():
    args = arguments()
    work = args.keep or Path(tempfile.mkdtemp(prefix="same-results-"))
    work.mkdir(parents=True, exist_ok=True)
    sides = [
        Side(name, program.resolve(), work.resolve() / name)
        for name, program in (("old", args.old), ("new", args.new))
    ]
    report = Report(args.expect)
    print(f"old: {args.old}\nnew: {args.new}\n")
    run = {"main": main_part, "sweep": sweep_part, "suite": suite_part, "one-thread": one_thread_part,
           "cli": cli_part, "render": render_part}  # fmt: skip
    for part in PARTS:
        if part in args.parts:
            run[part](report, sides, args.options, args.model)
    say_what_is_left_out()
    unmet = sorted(report.expected - report.met)
    if unmet:
        print(f"\nexpected, but not met: {', '.join(unmet)}")
    if report.differ:
        print(f"\n{len(report.differ)} items differ, {report.same} are the same; everything is in {work}")
        for name in report.differ:
            print(f"  {name}")
        return 1
    if not args.keep:
        shutil.rmtree(work)
    print(f"\nthe same: {report.same} items in {', '.join(args.parts)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Usage as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
