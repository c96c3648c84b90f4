"""``tools/benchmark.py --suite NAME``: run a suite, print its table, write its JSON; ``--report``: one page of many."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from tqdm import tqdm

from bevstack.engine.cpu_memory import keep_freed_memory
from bevstack.errors import InputError
from bevstack.experiments.arguments import SUITES, benchmark_parser
from bevstack.experiments.benchmarks.machine import description, restart_for
from bevstack.experiments.benchmarks.measuring import QUICK_ROUNDS, ROUNDS, Stopwatch
from bevstack.experiments.benchmarks.report import page_of, table_of
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.benchmarks.work import write_bounds
from bevstack.files import atomic_write


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: one suite, or the page of some suites' files.

    Raises:
        InputError: flags that make no sense, or a file that cannot be read or written.
    """
    args = benchmark_parser().parse_args(arguments)
    if args.report:
        page = page_of([read_record(path) for path in args.report])
        with atomic_write(args.page) as temporary:
            temporary.write_text(page)
        print(f"{args.page}: written from {len(args.report)} files")
        return 0
    for flag, value in (("--threads", args.threads), ("--rounds", args.rounds), ("--frames", args.frames)):
        if value is not None and value < 1:
            raise InputError("benchmark", flag, f"{value} must be at least 1")
    if args.against != "usual" and args.suite != "model":
        raise InputError("benchmark", "--against", f"suite {args.suite} is timed against the usual formulation only")
    if args.bounds and args.suite != "work":
        raise InputError("benchmark", "--bounds", "only suite work counts what bounds are made of")
    if args.file and args.suite != "latency":
        raise InputError("benchmark", "--file", "only suite latency runs an exported file")
    restart_for(args.allocator, args.threads)
    if args.allocator == "kept":
        keep_freed_memory()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(args.threads)
    settings = Settings(args.against, tuple(args.sizes), args.quick, args.frames, args.dtype, args.file)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    command = command_line(sys.argv[1:] if arguments is None else arguments)
    machine = description(args.allocator)
    tqdm.write(f"{args.suite}: {machine_line(machine)}", file=sys.stderr)
    suite = importlib.import_module(f"bevstack.experiments.benchmarks.{args.suite}")
    rows = suite.run(Stopwatch(rounds), settings)
    record = {"suite": args.suite, "against": args.against, "command": command, "quick": args.quick}
    record |= {"machine": machine, "rows": [row.plain() for row in rows]}
    print(machine_line(machine))
    print(table_of(record))
    if args.json:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    if args.bounds:
        write_bounds(rows, args.bounds, command)
    return 0


def command_line(arguments: Sequence[str]) -> str:
    """The command of these arguments, with the backend of the operators where the environment chooses it."""
    backend = os.environ.get("BEVSTACK_OPS", "")
    chosen = f"BEVSTACK_OPS={shlex.quote(backend)} " if backend else ""
    return chosen + shlex.join(["python", "tools/benchmark.py", *arguments])


def machine_line(machine: dict[str, Any]) -> str:
    """One line of what has to be known of the machine."""
    features = " ".join(machine["features"]) or "no vector features known"
    line = f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads, allocator {machine['allocator']}"
    return f"{line}, {features}, torch {machine['torch']}, commit {machine['commit'] or 'unknown'}"


def read_record(path: Path) -> dict[str, Any]:
    """A file that ``--json`` wrote.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise InputError(path, "--report", error.strerror or "cannot be read") from error
    except ValueError as error:
        raise InputError(path, "--report", f"no JSON: {error}") from error
    missing = {"suite", "command", "machine", "rows"} - set(record if isinstance(record, dict) else ())
    if missing:
        raise InputError(path, "--report", f"not written by --json: {', '.join(sorted(missing))} absent")
    if record["suite"] not in SUITES:
        raise InputError(path, "suite", f"{record['suite']!r} is none of {', '.join(SUITES)}")
    return record
