"""``tools/infer.py``: a trained model on a folder of images, a calibration and, for a clip, the poses of the car."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from bevstack.engine.arguments import infer_arguments
from bevstack.engine.camera_health import CameraChecks
from bevstack.engine.image_folder import find_moments, require_files, with_images
from bevstack.engine.inference import Predictor
from bevstack.engine.models import load_model
from bevstack.engine.moment_streams import records_in, records_on
from bevstack.engine.prediction import BEVPrediction
from bevstack.engine.result_files import box_rows, chosen_boxes, require_parquet, result_of, write_json, write_parquet
from bevstack.engine.rig_file import MomentRecord, moments_of, read_poses, read_rig, require_names
from bevstack.errors import InputError
from bevstack.structures.moment import Moment, Rig
from bevstack.visualization.files import write_clip, write_png

STDIN = Path("-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict what the command line asks for, and print one line on what was made.

    Raises:
        InputError: a mistake in the calibration, the poses, the images, the checkpoint or the flags; all but a broken
            image before anything is predicted. From standard input or a folder that is watched, when it is reached.
    """
    args = infer_arguments(arguments)
    if args.parquet:
        require_parquet()
    rig = read_rig(args.calibration)
    streamed = args.watch is not None or args.images == [STDIN]
    records = None if streamed else records_of(args, rig)
    checks = CameraChecks() if args.check_cameras or args.mask_unhealthy else None
    model = load_model(args.model, args.config, device_of(args.device))
    predictor = Predictor(model, None, args.dtype, checks, args.mask_unhealthy)
    if records is None:
        stream = records_on(sys.stdin) if args.watch is None else records_in(args.watch, args.idle_seconds)
        count = infer(predictor, rig, stream, args, answers=True)
    else:
        print_notes(records, rig)
        bar = track(records, "predicting", console=Console(file=sys.stderr))
        count = infer(predictor, rig, bar, args)
    made = "JSON" + " and picture" * (not args.no_pictures)
    table = ", boxes.parquet" if args.parquet else ""
    print(f"{count} moment(s): {made} of each{table} in {args.out}", file=sys.stderr if streamed else sys.stdout)
    return 0


def device_of(name: str | None) -> torch.device | None:
    """The device of a name; None where none is given.

    Raises:
        InputError: there is no such device here.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError("infer", "--device", f"'{name}' is not there: {str(error).splitlines()[0]}") from None
    return device


def records_of(args: argparse.Namespace, rig: Rig) -> list[MomentRecord]:
    """The moments of the command line, each with its images, all of which are there.

    Raises:
        InputError: they are not, or poses and images do not belong together.
    """
    if args.poses is None:
        records = find_moments(args.images, rig.names)
    else:
        folder = args.images[0] if args.images[0].is_dir() else Path()
        records = read_poses(args.poses, folder)
        if any(record.images is None for record in records):
            records = with_images(records, find_moments(args.images, rig.names))
    for _ in moments_of(records, rig):
        pass  # every camera is known, time goes on
    require_names(records)
    require_files(records)
    if args.frame == "global" and any(record.global_from_ego is None for record in records):
        raise InputError(args.poses or "infer", "--frame", "global needs --poses with a pose of every moment")
    return records


def print_notes(records: Sequence[MomentRecord], rig: Rig) -> None:
    """Say on standard error what a user may not have meant."""
    seen = {camera for record in records for camera in record.images or {}}
    blind = [name for name in rig.names if name not in seen]
    if blind:
        print(f"note: no images of {', '.join(blind)}: what they would show is not seen", file=sys.stderr)
    if len(records) > 1 and all(record.global_from_ego is None for record in records):
        print("note: without --poses each moment stands alone, with no memory of those before", file=sys.stderr)


def infer(
    predictor: Predictor, rig: Rig, records: Iterable[MomentRecord], args: argparse.Namespace, answers: bool = False
) -> int:
    """Predict moment after moment and write what is asked for under ``args.out``; returns how many there were.

    Args:
        predictor: of the model. rig: of the images. records: in the order of time; taken one by one.
        args: of the command line.
        answers: whether to print each result as a line of JSON, at once.
    """
    rows: list[dict] = []
    pictures: dict[str, list[Path]] = {}
    count = 0
    for record, moment, prediction in predicted(predictor, moments_of(records, rig), args.track):
        frame_from_bev = rig.ego_from_bev
        if args.frame == "global":
            if record.global_from_ego is None:
                raise InputError(*record.place, "global_from_ego absent: --frame global needs it")
            frame_from_bev = record.global_from_ego @ rig.ego_from_bev
        kept = chosen_boxes(prediction, args.min_score, args.frame, np.asarray(frame_from_bev))
        result = result_of(record, kept, args.cells)
        write_json(args.out / f"{record.name}.json", result)
        rows += box_rows(result) if args.parquet else []
        if not args.no_pictures:
            path = args.out / f"{record.name}.png"
            prediction.sample.set_metainfo({"scene_name": f"{record.stream} {record.name}".strip()})  # its title
            write_png(path, predictor.draw(prediction, moment.images, rig, args.score_thr, args.layout))
            pictures.setdefault(record.stream, []).append(path)
        if answers:
            print(json.dumps(result, allow_nan=False), flush=True)
        count += 1
    if args.parquet:
        write_parquet(args.out / "boxes.parquet", rows)
    for stream, paths in pictures.items():
        if args.clip != "none":
            write_clip(args.out / f"{stream or 'clip'}.{args.clip}", paths, args.fps)
    return count


def predicted(
    predictor: Predictor, pairs: Iterable[tuple[MomentRecord, Moment]], track_boxes: bool
) -> Iterator[tuple[MomentRecord, Moment, BEVPrediction]]:
    """Each record and moment with what the model says of it, its memory carried along, one at a time."""
    waiting: deque[tuple[MomentRecord, Moment]] = deque()

    def moments() -> Iterator[Moment]:
        for record, moment in pairs:
            waiting.append((record, moment))
            yield moment

    for prediction in predictor.stream(moments(), track_boxes):
        record, moment = waiting.popleft()
        yield record, moment, prediction
