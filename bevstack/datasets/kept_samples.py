"""A sample whose backbone features may be kept: who it is, and the features where they are there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bevstack.structures.feature_store import FeatureStore


@dataclass(frozen=True)
class KeptSample:
    """What a loader process knows of a sample's features.

    Args:
        number: of the sample in its dataset, where a store keeps it.
        identity: of its image files: another token, path, size or time of writing is another sample.
        features: (bytes,) uint8 as the store keeps them, None where they have still to be computed.
    """

    number: int
    identity: int
    features: Tensor | None

    @classmethod
    def find(cls, store: FeatureStore, number: int, keyframe: Mapping) -> KeptSample:
        """The sample in a store. A file that is not there has no features; decoding it says so.

        Args:
            store: of the dataset's training.
            number: of the sample in its dataset.
            keyframe: its ``token`` and ``image_paths``.
        """
        digest = hashlib.blake2b(keyframe["token"].encode(), digest_size=8)
        missing = False
        for path in keyframe["image_paths"]:
            try:
                status = os.stat(path)
            except OSError:
                missing = True
                continue
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        identity = int.from_bytes(digest.digest(), "little") >> 1 | 1  # fits into int64, and is not 0
        return cls(number, identity, None if missing else store.read(number, identity))
