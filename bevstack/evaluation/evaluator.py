"""An evaluator that lets no metric's fault take the other metrics' results with it."""

from __future__ import annotations

from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.logging import print_log

from bevstack.errors import InputError
from bevstack.registry import EVALUATOR


@EVALUATOR.register_module()
class WholeEvaluator(Evaluator):
    """mmengine's evaluator, which asks every metric for its answer and raises the first error only then.

    So each metric writes what it writes, and what the others say is logged where one fails.
    """

    def evaluate(self, size: int) -> dict[str, Any]:
        """Answers of all metrics in one dict.

        A key that an earlier metric gives, too, gets the metric's place before it: ``1/NDS`` of the second metric.

        Args:
            size: number of samples of the dataset.

        Raises:
            InputError: the first one of a metric.
        """
        answers: dict[str, Any] = {}
        fault: InputError | None = None
        for place, metric in enumerate(self.metrics):
            try:
                answer = metric.evaluate(size)
            except InputError as error:
                fault = fault or error
                continue
            answers.update({f"{place}/{key}" if key in answers else key: value for key, value in answer.items()})
        if fault is not None:
            if answers:
                print_log(f"what the other metrics say: {answers}", "current")
            raise fault
        return answers
