"""What a config may ask of a training is done, or refused by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from torch import nn

from bevstack.engine.checkpoint import newest_checkpoint, read_checkpoint
from bevstack.engine.compilation import compile_form, compile_options
from bevstack.engine.config import building, load_config
from bevstack.engine.evaluation_loops import AutocastTestLoop, AutocastValLoop, StreamingTestLoop
from bevstack.engine.runner import BEVRunner
from bevstack.engine.schedules import schedule_notes
from bevstack.engine.test import test as run_test
from bevstack.engine.training_checks import check_training
from bevstack.errors import InputError
from bevstack.registry import DATA_SAMPLERS, HOOKS, METRICS
from tests.engine.test_resume import end_state, same
from tests.engine.toy import ToyDataset, ToyMetric, toy_config, train_toy

ROOT = Path(__file__).resolve().parents[2]
EVERY_EPOCH = {"type": "CheckpointHook", "interval": 1, "_delete_": True}
WRAPPED = "train_dataloader.dataset.type=mmdet3d.CBGSDataset"
BY_ITERATIONS = {"type": "ResumableTrainLoop", "max_iters": 12, "val_interval": 5, "_delete_": True}


def history(path: Path, name: str = "train/lr") -> list[float]:
    return read_checkpoint(path)["message_hub"]["log_scalars"][name]["history"][0].tolist()


@HOOKS.register_module()
class CountValidations(Hook):
    """Steps after which validation ran."""

    steps: list[int] = []

    def before_val(self, runner) -> None:
        self.steps.append(runner.iter)


@METRICS.register_module()
class ChoosyMetric(ToyMetric):
    """Asks samples for what the toy model does not predict."""

    def process(self, data_batch, data_samples) -> None:
        raise InputError("ChoosyMetric", "pred_rasters", f"sample {data_samples[0]['token']} has none")


@METRICS.register_module()
class ScoredSamples(ToyMetric):
    """How many samples each evaluation scored, and whether the model was trained then."""

    counts: list[int] = []

    def compute_metrics(self, results: list) -> dict:
        self.counts.append(len(results))
        return super().compute_metrics(results)


def test_what_a_metric_lacks_is_said_before_anything_is_trained(tmp_path) -> None:
    """It used to be said by the first validation, after an epoch."""
    with pytest.raises(InputError, match="ChoosyMetric: pred_rasters: sample .* has none"):
        train_toy(str(tmp_path), val_evaluator={"type": "ChoosyMetric", "_delete_": True})
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_rehearsal_leaves_nothing_behind(tmp_path, streaming) -> None:
    """Neither in the scores (each validation counts every sample once) nor in what is trained (as without a metric)."""
    ScoredSamples.counts = []
    train_toy(str(tmp_path / "scored"), val_evaluator={"type": "ScoredSamples", "_delete_": True}, streaming=streaming)
    assert len(ScoredSamples.counts) == 2 and len(set(ScoredSamples.counts)) == 1
    assert ScoredSamples.counts[0] == len(ToyDataset(seed=7))
    without = {"val_evaluator": None, "val_dataloader": None, "val_cfg": None}
    train_toy(str(tmp_path / "alone"), streaming=streaming, **without)
    assert same(end_state(tmp_path / "scored"), end_state(tmp_path / "alone")) == []


def test_training_by_iterations_equals_epochs(tmp_path) -> None:
    """Twelve iterations in epochs of eight, against two whole epochs: bit for bit the same after twelve steps."""
    train_toy(str(tmp_path / "epochs"), default_hooks__checkpoint__interval=12)
    CountValidations.steps = []
    hooks = [{"type": "CountValidations"}]
    summary = train_toy(str(tmp_path / "steps"), train_cfg=BY_ITERATIONS, extra_hooks=hooks)
    assert summary["steps"] == 12 and CountValidations.steps == [5, 10, 12]
    assert same(end_state(tmp_path / "epochs", 12), end_state(tmp_path / "steps", 12)) == []


@pytest.mark.parametrize("cut", [3, 9])
def test_training_by_iterations_resumes_exactly(tmp_path, cut) -> None:
    """From the first epoch and from the second."""
    train_toy(str(tmp_path / "straight"), train_cfg=BY_ITERATIONS)
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "straight" / f"iter_{cut}.pth", tmp_path / "cut")
    train_toy(str(tmp_path / "cut"), "auto", train_cfg=BY_ITERATIONS)
    assert same(end_state(tmp_path / "straight", 12), end_state(tmp_path / "cut", 12)) == []


def test_a_config_may_count_iterations_without_a_loop(tmp_path) -> None:
    """``by_epoch=False`` alone, as OpenMMLab's configs have it, where checkpoints count epochs: the end is saved."""
    cfg = {"by_epoch": False, "max_iters": 11, "_delete_": True}
    summary = train_toy(str(tmp_path), train_cfg=cfg, default_hooks__checkpoint=EVERY_EPOCH)
    assert summary["steps"] == 11 and summary["checkpoint"].endswith("iter_11.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_cfg": BY_ITERATIONS},
        {"extra_hooks": [{"type": "BudgetSchedule", "max_steps": 5}]},
        {"extra_hooks": [{"type": "BudgetSchedule", "max_seconds": 1e-4}]},
        {"extra_hooks": [{"type": "MaxSecondsHook", "max_seconds": 1e-4}]},
    ],
    ids=["epochs", "iterations", "budget of steps", "budget of seconds", "seconds"],
)
def test_nothing_is_trained_after_the_end(tmp_path, changes) -> None:
    """A run that has ended, resumed twice: the same steps, the same files, and no more seconds."""
    first = train_toy(str(tmp_path), **changes)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.pth")}
    for _ in range(2):
        again = train_toy(str(tmp_path), "auto", **changes)
        assert again["steps"] == first["steps"] and again["train_seconds"] <= first["train_seconds"]
        assert again["checkpoint"] == first["checkpoint"]
        assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.pth")} == files


@pytest.mark.parametrize("schedule", ["schedulers", "budget"])
def test_changed_rates_are_those_of_the_new_config(tmp_path, schedule) -> None:
    """Resumed after 9 of 16 steps: the rates that follow are those of a run with the new settings from the start."""
    start = {"extra_hooks": [{"type": "BudgetSchedule"}], "param_scheduler": None} if schedule == "budget" else {}
    new = {**start, "optim_wrapper__optimizer__lr": 0.002, "optim_wrapper__optimizer__weight_decay": 0.5}
    if schedule != "budget":
        new["param_scheduler"] = [{"type": "MultiStepLR", "by_epoch": False, "milestones": [4, 12], "gamma": 0.1}]
    train_toy(str(tmp_path / "old"), **start)
    train_toy(str(tmp_path / "new"), **new)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "old" / "iter_9.pth", tmp_path / "run")
    train_toy(str(tmp_path / "run"), "auto", resume_changed=True, **new)
    expected, found = (history(tmp_path / name / "iter_16.pth") for name in ("new", "run"))
    assert found[9:] == pytest.approx(expected[9:]) and found[:9] != pytest.approx(expected[:9])
    groups = read_checkpoint(tmp_path / "run" / "iter_16.pth")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim_wrapper__optimizer": {"type": "SGD", "lr": 0.1, "_delete_": True}}, "type: 'AdamW' -> 'SGD'.*load_fr"),
        ({"train_dataloader__dataset__length": 32}, "after 1 of the 8 steps of an epoch, which now has 16"),
    ],
)
def test_what_cannot_go_on_is_refused(tmp_path, changes, message) -> None:
    """Although told to go on: another optimizer, the middle of an epoch of another length."""
    train_toy(str(tmp_path / "old"))
    with pytest.raises(InputError, match=message):
        train_toy(str(tmp_path / "new"), str(tmp_path / "old" / "iter_9.pth"), resume_changed=True, **changes)


def test_more_data_after_a_whole_epoch(tmp_path) -> None:
    """A second epoch of 16 steps after a first of 8."""
    train_toy(str(tmp_path / "old"), default_hooks__checkpoint=EVERY_EPOCH)
    summary = train_toy(
        str(tmp_path / "new"),
        str(tmp_path / "old" / "epoch_1.pth"),
        resume_changed=True,
        train_dataloader__dataset__length=32,
    )
    assert summary["steps"] == 24 and summary["epochs"] == 2


def test_copied_folder_has_the_same_newest_checkpoint(tmp_path) -> None:
    """A copy may have the files' times in any order, here the reverse."""
    train_toy(str(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for age, path in enumerate(sorted((tmp_path / "copy").glob("iter_*.pth"), key=lambda p: int(p.stem[5:]))):
        os.utime(path, (10_000 - age, 10_000 - age))
    newest, problems = newest_checkpoint(tmp_path / "copy")
    assert newest.name == "iter_16.pth" and problems == []


def test_rate_is_scaled_with_the_batch(tmp_path) -> None:
    """``auto_scale_lr``: made for 8 samples a step, here are 2, so a quarter of 0.01."""
    scaling = {"enable": True, "base_batch_size": 8}
    train_toy(str(tmp_path), auto_scale_lr=scaling, param_scheduler=None)
    assert history(tmp_path / "iter_16.pth") == pytest.approx([0.0025] * 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train_cfg.type=EpochBasedTrainLoop"], "train_cfg.type: EpochBasedTrainLoop resumes .*max_epochs, too"),
        (["train_cfg={'type':'IterBasedTrainLoop','max_iters':3,'_delete_':True}"], "IterBasedTrainLoop .*max_iters"),
        (["train_cfg={'by_epoch':False,'max_epochs':3,'_delete_':True}"], "train_cfg.max_iters: absent, but by_epoch"),
        (["train_dataloader.sampler={'type':'InfiniteSampler','_delete_':True}"], "sampler.type: InfiniteSampler has"),
        ([WRAPPED, "train_dataloader.dataset.dataset={}"], "mmdet3d.s CB"),
        (["auto_scale_lr={'enable':True,'_delete_':True}"], "auto_scale_lr.base_batch_size: absent"),
        (["load_from=ckpts/none.pth"], "load_from: no such file: ckpts/none.pth"),
        (["model.neck.init_cfg={'type':'Pretrained','checkpoint':'none.pth'}"], "model.neck.init_cfg.checkpoint: no"),
        (["compile=yes"], "compile: 'yes' is neither True, False nor a dict"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(options, message) -> None:
    with pytest.raises(InputError, match=message):
        check_training(load_config(ROOT / "configs" / "demo.py", options))


def test_compiling_needs_a_compiler(monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match=r"compile: torch.compile needs a C\+\+ compiler"):
        compile_options(Config({"compile": True}))
    assert compile_options(Config({"compile": {"backend": "eager"}})) == {"backend": "eager"}
    assert compile_options(Config({"compile": False})) is None


def test_inference_goes_on_without_a_compiler(monkeypatch) -> None:
    """One line says so; with a compiler (here one that counts its graphs) backbone and neck of the form go to it."""

    class Part(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.sin(images) + 1

    form, graphs = nn.Module(), []
    form.backbone, form.neck = Part(), Part()
    with monkeypatch.context() as patched:
        patched.setattr("shutil.which", lambda name: None)
        with pytest.warns(UserWarning, match=r"compile: torch.compile needs a C\+\+ compiler .*; goes on without"):
            assert compile_form(form, Config({"compile": True})) is False
    assert compile_form(form, Config()) is False and form.backbone._compiled_call_impl is None

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    assert compile_form(form, Config({"compile": {"backend": backend}})) is True
    expected = torch.sin(torch.sin(torch.ones(1, 3)) + 1) + 1
    assert torch.equal(form.neck(form.backbone(torch.ones(1, 3))), expected) and graphs


def test_compiled_backbone_is_called() -> None:
    """A backend that counts the graphs it is given sees that of the backbone, and its answer is the same."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    class Backbone(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.sin(images) + 1

    backbone = Backbone()
    cfg, logger = Config({"compile": {"backend": backend}}), SimpleNamespace(info=lambda text: None)
    plain = backbone(torch.ones(1, 3))
    BEVRunner._maybe_compile(SimpleNamespace(cfg=cfg, module=SimpleNamespace(backbone=backbone), logger=logger), "x")
    assert torch.equal(backbone(torch.ones(1, 3)), plain) and len(graphs) == 1


@pytest.mark.parametrize(
    ("epochs", "told"),
    [
        (2, ["param_scheduler.1: CosineAnnealingLR ends at epoch 24, training at 2"]),
        (24, []),
        (30, ["param_scheduler: every schedule ends before training does"]),
    ],
)
def test_length_of_the_schedule_is_told(epochs, told) -> None:
    """The published schedule of 24 epochs with 500 steps of warm-up, for trainings of 1000 steps an epoch."""
    notes = schedule_notes(load_config(ROOT / "configs" / "bevformer" / "bevformer_tiny.py"), epochs, 1000 * epochs)
    assert len(notes) == len(told) and all(note.startswith(start) for note, start in zip(notes, told, strict=True))


@HOOKS.register_module()
class LooksAtTraining(Hook):
    def before_test(self, runner) -> None:
        assert hasattr(runner.train_loop, "stop_training"), "needs a train loop"


def test_hooks_of_training_in_a_test(tmp_path) -> None:
    """mmengine's own for early stopping is left out; another that cannot run is named, in one line."""
    train_toy(str(tmp_path))
    cfg = toy_config(tmp_path)
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.test_cfg = {"type": "AutocastTestLoop"}
    cfg.custom_hooks = [{"type": "EarlyStoppingHook", "monitor": "mean"}]
    assert run_test(cfg, tmp_path / "iter_16.pth", tmp_path / "out")["count"] == 16
    cfg = cfg.copy()
    cfg.custom_hooks = [{"type": "LooksAtTraining"}]
    cfg.test_cfg = {"type": "AutocastTestLoop"}
    with pytest.raises(InputError, match="LooksAtTraining: refuses to run here: needs a train loop"):
        run_test(cfg, tmp_path / "iter_16.pth", tmp_path / "out")


@pytest.mark.parametrize("loop", [AutocastValLoop, AutocastTestLoop, StreamingTestLoop])
def test_a_number_format_that_nobody_would_read_is_refused(loop) -> None:
    """mmengine's ``fp16`` of a loop; here ``dtype`` says it."""
    with pytest.raises(ValueError, match="fp16=True: say dtype='float16'"):
        loop(fp16=True, runner=None, dataloader=None, evaluator=None)


def test_what_validation_would_refuse_is_refused_before_training(tmp_path, monkeypatch) -> None:
    """A metric that cannot score the model, found at the start instead of after the first epoch."""

    def refuse(metric, model) -> None:
        raise InputError("ToyMetric", "classes", "other ones")

    monkeypatch.setattr(ToyMetric, "check_model", refuse, raising=False)
    with pytest.raises(InputError, match="ToyMetric: classes: other ones"):
        train_toy(str(tmp_path))
    assert not list(tmp_path.glob("*.pth"))


def test_a_message_that_shows_a_whole_model_is_cut() -> None:
    """As of mmengine's registry, which prints all that it was given."""
    with pytest.raises(InputError) as raised, building(Config({})):
        raise ValueError(f"cannot take {nn.Sequential(*(nn.Linear(n, 1) for n in range(1, 99)))}")
    assert "cannot take Sequential(" in str(raised.value) and len(str(raised.value)) < 500


@DATA_SAMPLERS.register_module()
class NeverEnds(DefaultSampler):
    """Somebody's own sampler, that begins again and again."""

    def __iter__(self):
        while True:
            yield from super().__iter__()


def test_an_epoch_is_as_long_as_the_loader_says(tmp_path) -> None:
    """Expected: two epochs of eight batches of the 16 samples, whatever the sampler would go on to give."""
    sampler = {"type": "NeverEnds", "shuffle": True}
    assert train_toy(str(tmp_path), train_dataloader__sampler=sampler)["steps"] == 16


@pytest.mark.parametrize("error", [ImportError("torch_npu is not there"), FileNotFoundError(2, "gone", "x.pth")])
def test_what_cannot_be_imported_or_read_is_one_line(error) -> None:
    with pytest.raises(InputError, match="config: config: (torch_npu|.*gone)"), building(Config({})):
        raise error


def test_weights_out_of_reach_are_one_line(monkeypatch) -> None:
    """A host that cannot be reached, as ``torchvision://`` without a network."""
    from urllib.error import URLError

    class Model(nn.Module):
        def init_weights(self) -> None:
            raise URLError("Name or service not known")

    with pytest.raises(InputError, match="init_cfg: weights cannot be read or fetched: .*not known"):
        runner = object.__new__(BEVRunner)
        runner.model, runner.cfg = Model(), Config({})
        runner._init_model_weights()


def test_another_shape_from_a_trained_model_in_one_option(tmp_path) -> None:
    """As another number of classes: ``load_from`` with ``new_parts``, averaged weights included; the rate is 0."""
    train_toy(str(tmp_path / "old"))
    changes = {"model__channels": 4, "load_from": str(tmp_path / "old" / "iter_16.pth"), "new_parts": "out"}
    train_toy(str(tmp_path / "new"), optim_wrapper__optimizer__lr=0.0, **changes)
    old, new = (read_checkpoint(tmp_path / name / "iter_16.pth") for name in ("old", "new"))
    average = {name.removeprefix("module."): value for name, value in new["ema_state_dict"].items()}
    for weights in (new["state_dict"], average):
        assert torch.equal(weights["embed.weight"], old["state_dict"]["embed.weight"])
        assert not torch.equal(weights["out.weight"], old["state_dict"]["out.weight"])
