"""``tools/test.py`` by torchrun on one, two and three processes: one file of metrics, byte for byte.

The tiny set has one scene to score, so that of three processes two have no sample; by its training scenes, two, one.
"""

from __future__ import annotations

import os
import sys

import pytest

from bevstack.engine.checkpoint import checkpoint_of
from tests.integration.conftest import REPOSITORY
from tests.processes import run_captured


@pytest.mark.slow
@pytest.mark.parametrize("split", ["val", "train"])
def test_metrics_do_not_depend_on_the_number_of_processes(trained, tmp_path, split) -> None:
    checkpoint = checkpoint_of(trained.work_dir)
    overrides = [f"test_dataloader.dataset.split={split}", f"test_evaluator.0.split={split}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    written = []
    for ranks in (1, 2, 3):
        out = tmp_path / str(ranks)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["tools/test.py", str(trained.config), str(checkpoint), "--launcher", "pytorch", "--out", str(out)]
        done = run_captured([*command, "--cfg-options", *overrides], 240, cwd=REPOSITORY, env=environment)
        assert done.returncode == 0, done.stderr
        written.append([(out / name).read_bytes() for name in ("metrics.json", "results_nusc.json")])
    assert written[1] == written[0] and written[2] == written[0]
