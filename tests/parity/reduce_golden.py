"""Make the small set of recordings, which is in the repository, from the large one, which is not.

``python -m tests.parity.reduce_golden LARGE_FOLDER`` writes ``tests/golden``. Left out are results on a whole batch
where those on each sample alone are there (with a batch of two the reference itself is wrong), the second sample and
the later layers where another case has them, and what no test reads. What is kept is kept bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from torch import Tensor

from tests.parity.golden import SMALL_FOLDER, read_tensors

# Words of four bytes: what lzma has to know about float32 to save a quarter instead of a tenth.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 2, "pb": 2}]
_INFO = ("case", "variant", "source", "config", "img_metas", "versions", "notes", "calls")


@dataclass(frozen=True)
class Reduction:
    """What of a case is kept.

    Args:
        drop: pattern of the names of tensors that are left out.
        first: pattern of names to the dimension of which only the first entry is kept.
        samples: how many samples' ``img_metas`` are kept; None: all.
        config: sizes that are others afterwards.
    """

    drop: str = "$^"
    first: dict[str, int] = field(default_factory=dict)
    samples: int | None = None
    config: dict[str, int] = field(default_factory=dict)

    def __call__(self, info: dict, tensors: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
        """The reduced JSON, which lists the tensors with their shapes, and the reduced tensors."""
        kept = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(self.drop, name)}
        for name in kept:
            for pattern, dimension in self.first.items():
                if re.fullmatch(pattern, name):
                    kept[name] = kept[name].narrow(dimension, 0, 1).clone()
        info = {key: info[key] for key in _INFO if key in info}
        if self.samples is not None:
            info["img_metas"] = info["img_metas"][: self.samples]
        if self.config:
            info["config"] = {**info["config"], **self.config}
        return {**info, "tensors": {name: list(kept[name].shape) for name in sorted(kept)}}, kept


REDUCTIONS = {
    "a_ms_deform_attn": Reduction(),
    "b_temporal_self_attention": Reduction(drop=r"out\.bs2_.*"),
    "c_spatial_cross_attention": Reduction(
        drop=r"out\.(bs2_.*|bs1_[1-9])",
        first={
            r"in\.query|in\.d\w+|out\.deform3d": 0,
            r"in\.(bev_mask|reference_points_cam)": 1,
            r"in\.key": 2,
        },
    ),
    "d_encoder": Reduction(
        drop=r"out\.(bs2_.*|.*_layers_[1-9])|weights\.layers\.[1-9]\..*",
        first={
            r"in\.shift|out\.ref_\dd|out\.bs1_.*_layers_0": 0,  # the first sample; the first layer
            r"in\.(bev_pos|bev_query|prev_bev)|out\.(bev_mask|reference_points_cam)": 1,
            r"in\.feat": 2,
        },
        samples=1,
        config={"enc_layers": 1},
    ),
    "d_point_sampling_real": Reduction(),
    "e_perception_transformer": Reduction(
        drop=r"out\.(bev_bs2_prev|fwd_bs2\..*)",
        first={r"out\.(bev_bs2_noprev|enc_in_bs2\.feat_flatten_sample0)": 0},  # the first sample; the first camera
    ),
    "e_rotate": Reduction(),
    "f_head": Reduction(
        drop=r"out\.(bs1_prev_[1-9]\..*|only_bev_.*)", first={r"in\.(feat\d|prev_bev)": 0}, samples=1
    ),
    "g_modulated_deform_conv": Reduction(),
}
MANIFESTS = ("checkpoint_tiny", "checkpoint_small", "checkpoint_base")


def reduced(name: str, large: Path) -> tuple[dict, dict[str, Tensor]]:
    """The reduced case of a folder; its JSON says of which file it was made."""
    path = large / f"{name}.safetensors"
    info, tensors = REDUCTIONS[name](json.loads((large / f"{name}.json").read_text()), read_tensors(path))
    return {**info, "made_from_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}, tensors


def _lines(info: dict) -> str:
    """JSON with one line for each key."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in info.items()) + "\n}\n"


def write_small_set(large: Path, folder: Path = SMALL_FOLDER) -> None:
    """Write every case and manifest of the small set."""
    folder.mkdir(exist_ok=True)
    for name in REDUCTIONS:
        info, tensors = reduced(name, large)
        (folder / f"{name}.json").write_text(_lines(info))
        packed = lzma.compress(safetensors.torch.save(tensors), filters=_FILTERS)
        (folder / f"{name}.safetensors.xz").write_bytes(packed)
    for name in MANIFESTS:
        (folder / f"{name}.json.xz").write_bytes(lzma.compress((large / f"{name}.json").read_bytes(), preset=9))


if __name__ == "__main__":
    write_small_set(Path(sys.argv[1]))
