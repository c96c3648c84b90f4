"""What every metric here shares: results gathered whole from all ranks, flat keys, an error that reaches every rank."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric

from bevstack.errors import InputError


class GatheredMetric(BaseMetric):
    """A metric over per-sample results, computed once, on the main rank, from the results of all ranks.

    mmengine's own gathering cuts the list to the size of the dataset, which hides duplicate and foreign samples; here
    nothing is dropped, so that :meth:`compute_metrics` can refuse them. An :class:`InputError` found on the main rank
    is raised on every rank, so that none waits for ever. Keys carry no prefix.

    A metric may refuse the dataset (:meth:`check_dataset`) and the model (:meth:`check_model`) before the first
    prediction, and keep what was predicted where it cannot be scored (:meth:`keep`).
    """

    _classes: tuple[str, ...] | None = None  # names of the labels, where the metric is told its own

    def __init__(self) -> None:
        super().__init__(collect_device="cpu", prefix="flat")  # a prefix spares mmengine's warning ...
        self.prefix = None  # ... but the keys stay flat

    @property
    def dataset_meta(self) -> dict[str, Any] | None:
        """The dataset's metainfo, once the evaluator is told it."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict[str, Any]) -> None:
        """Hear of the dataset, and refuse one that cannot be scored (:meth:`check_dataset`)."""
        self._dataset_meta = meta
        if meta is not None:
            self._refuse_other_names(meta.get("classes"))
            self.check_dataset(meta)

    def _refuse_other_names(self, labelled: Sequence[str] | None) -> None:
        """Refuse a dataset that numbers the metric's own classes otherwise; one of names all its own is taken.

        Raises:
            InputError: names both lists.
        """
        own = tuple(self._classes or ())
        if labelled is not None and set(own) & set(labelled) and own != tuple(labelled):
            reason = f"{list(own)}, but the dataset labels by {list(labelled)}: leave it out to take the dataset's"
            raise InputError(type(self).__name__, "classes", reason)

    def check_dataset(self, meta: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` where this metric cannot score a dataset of such metainfo."""

    def check_model(self, model: Any) -> None:
        """Raise :class:`InputError` where this metric cannot score what a model predicts."""

    def keep(self, results: list) -> Path | None:
        """Write down all ranks' results, which cannot be scored; returns where, None for nowhere."""
        return None

    def named_classes(self, given: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the labels: those given to the metric, or else the dataset's.

        Raises:
            InputError: neither has them.
        """
        names = given or (self.dataset_meta or {}).get("classes")
        if names is None:
            raise InputError(type(self).__name__, "classes", "neither the metric nor the dataset names them")
        return tuple(names)

    def refuse_other_classes(self, model: Any, classes: Sequence[str]) -> None:
        """Refuse a model whose heads number other labels: a plausible number would come out.

        Args:
            model: has ``heads`` by name; those that predict boxes have ``classes``.
            classes: that the metric reads labels by.

        Raises:
            InputError: names both lists.
        """
        for name, head in dict(getattr(model, "heads", {})).items():
            own = getattr(head, "classes", None)
            if "Detection" in type(head).__name__ and own is not None and tuple(own) != tuple(classes):
                reason = f"are {', '.join(own)}, but {type(self).__name__} reads labels as {', '.join(classes)}"
                raise InputError("model", f"heads.{name}.classes", reason)

    def require_distinct(self, tokens: Iterable[str]) -> None:
        """Refuse results in which a sample comes twice.

        Raises:
            InputError: names the first one that does.
        """
        seen: set[str] = set()
        for token in tokens:
            if token in seen:
                raise InputError(type(self).__name__, token, "sample is there more than once")
            seen.add(token)

    @abstractmethod
    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics of all ranks' results, in no particular order."""

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the results of all ranks, compute on the main one, give the same answer to all.

        Args:
            size: number of samples of the dataset (mmengine's signature; not needed here).

        Raises:
            InputError: on every rank, when the results cannot be scored.
        """
        results = [result for part in all_gather_object(self.results) for result in part]
        self.results.clear()
        answer: list[Any] = [None, None]
        failure: Exception | None = None
        if is_main_process():
            try:
                answer[0] = self.compute_metrics(results)
            except InputError as error:
                answer[1] = (error.file, error.field, f"{error.reason}{self._kept(results)}")
            except Exception as error:  # noqa: BLE001 - whatever a metric fails at, hours of predictions are kept
                print(f"{type(self).__name__} failed{self._kept(results)}", file=sys.stderr, flush=True)
                failure, answer[1] = error, (type(self).__name__, "score", repr(error))
        broadcast_object_list(answer)
        if failure is not None:
            raise failure
        if answer[1] is not None:
            raise InputError(*answer[1])
        return answer[0]

    def _kept(self, results: list) -> str:
        place = self.keep(results)
        return "" if place is None else f"; the predictions are kept in {place}"


def as_dict(sample: Any) -> dict[str, Any]:
    """A data sample as mmengine's evaluator hands it over: a flat dict of fields and metainfo."""
    return sample if isinstance(sample, dict) else sample.to_dict()
