"""Times that can be compared: candidates take turns in one process, and medians, quartiles and ratios are told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

from bevstack.engine.benchmark import timed

ROUNDS, QUICK_ROUNDS = 9, 2


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers, and how many there were."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))


@dataclass
class Row:
    """One line of a suite.

    Args:
        name: what was done.
        seconds: by candidate, each of its times in the order they were taken.
        base: the candidate that ratios are told against (base / candidate); "" where nothing is compared.
        differences: by candidate, the largest difference of its answer from the base's, as a share of the largest
            value.
        facts: other numbers and words by name: counts, shares, what could not be run and why.
    """

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    base: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def ratio(self, candidate: str) -> float | None:
        """Median of the base over median of a candidate: how many times faster it is; None without a base."""
        if self.base not in self.seconds or candidate == self.base:
            return None
        return Spread.of(self.seconds[self.base]).median / Spread.of(self.seconds[candidate]).median

    def plain(self) -> dict[str, Any]:
        """As plain data for a JSON file; seconds to the microsecond."""
        candidates = {}
        for name, values in self.seconds.items():
            spread = Spread.of(values)
            entry = {"median": spread.median, "low": spread.low, "high": spread.high}
            candidates[name] = {key: round(value, 6) for key, value in entry.items()} | {"count": spread.count}
            ratio = self.ratio(name)
            if ratio is not None:
                candidates[name]["ratio"] = round(ratio, 3)
            if name in self.differences:
                candidates[name]["difference"] = float(f"{self.differences[name]:.2g}")
        return {"name": self.name, "base": self.base, "candidates": candidates, "facts": self.facts}


class Stopwatch:
    """Times candidates in turns, A B A B, so that what else the machine does falls on all of them alike.

    Args:
        rounds: times that each candidate counts, after one that does not.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def row(
        self,
        name: str,
        candidates: Mapping[str, Callable[[], object]],
        base: str = "usual",
        differences: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Row:
        """A row of timed candidates, functions without arguments; shows its progress on stderr."""
        seconds: dict[str, list[float]] = {key: [] for key in candidates}
        with tqdm(total=(self.rounds + 1) * len(candidates), desc=name, leave=True) as bar:
            for turn in range(self.rounds + 1):
                for key, run in candidates.items():
                    bar.set_postfix_str(key)
                    taken = timed(run)
                    if turn:
                        seconds[key].append(taken)
                    bar.update()
        return Row(name, seconds, base if base in candidates else "", dict(differences or {}), dict(facts or {}))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors (...) of one shape, as a share of the largest value expected."""
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: percentiles by nearest rank, worst, and jitter, the standard deviation; p99.9 over the median."""
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]

    found = {"p50": rank(0.5), "p90": rank(0.9), "p99": rank(0.99), "p99.9": rank(0.999), "worst": ordered[-1]}
    found["jitter"] = statistics.pstdev(seconds)
    facts = {f"{name} (ms)": round(1000 * value, 3) for name, value in found.items()}
    return facts | {"p99.9 / p50": round(found["p99.9"] / found["p50"], 3), "frames": len(seconds)}
