"""What docs/recipe.md compares: levers of the demo's training, at equal samples and at equal wall clock, three seeds.

    python tools/compare.py configs/study/recipe.py --records docs/benchmarks/study --page docs/recipe.md \
        --work-dir work_dirs/recipe --detach

trains what has no record yet, one run after another, and writes the page; ``--report`` writes it from the records
alone. ``--only wall`` or ``--only samples`` runs a half. A run finished elsewhere is taken in by

    python tools/compare.py configs/study/recipe.py --records docs/benchmarks/study --page docs/recipe.md \
        --take samples demo 0 FOLDER_OF_TOOLS_TEST

The demo's data must be there (``make demo``); three levers have sets of their own, which their configs say how to make.
"""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

main_columns = [
    ("steps", "steps"),
    ("NDS", "NDS"),
    ("mAP", "mAP"),
    ("car", "AP/car"),
    ("mATE", "mATE"),
    ("mAOE", "mAOE"),
    ("mAVE", "mAVE"),
    ("mAAE", "mAAE"),
    ("drivable area", "iou/drivable_area"),
    ("crossing", "iou/ped_crossing"),
    ("divider", "iou/divider"),
    ("vehicle", "iou/vehicle"),
]
rings = ("0-10 m", "10-20 m", "20-30 m", "30-50 m")
tables = {
    "Together": main_columns,
    "AP of each class": [(name.replace("_", " "), f"AP/{name}") for name in classes],
    "By distance: mAP of the classes there, AP of cars": [
        *((f"mAP {ring}", f"scores/mAP/{ring}") for ring in rings),
        *((f"car {ring}", f"scores/AP/car/{ring}") for ring in rings),
    ],
    "Cars found at 2 m: metres off, part whose heading is within 15 degrees": [
        *((f"off {ring}", f"scores/off/{ring}") for ring in rings),
        *((f"heading {ring}", f"scores/heading/within 15 deg/{ring}") for ring in rings),
    ],
    "Vehicles that move, found at 2 m": [
        ("error of velocity, m/s", "scores/AVE/movers"),
        ("predicted speed", "scores/speed/movers"),
        ("true speed", "scores/true_speed/movers"),
        ("taken for moving", "scores/moving/movers"),
        ("of the standing ones", "scores/moving/standing"),
    ],
    "Cost": [
        ("parameters", "parameters"),
        ("multiply-adds a sample", "multiply_adds"),
    ],
}
timed_tables = {**tables, "Cost": [*tables["Cost"], ("seconds a step", "seconds_per_step")]}
levers = [
    dict(name="demo", text="`configs/demo.py` as it stands; the others change one thing in it"),
    dict(name="center outputs", config="center_outputs.py", text="heading by bins, moving and quality as outputs"),
    dict(name="BEV augmentation", config="bev_augmentation.py", text="BEV turned, scaled, mirrored by stream"),
    dict(name="balanced sampling", config="balanced_sampling.py", text="streams with rare classes come more often"),
    dict(name="rare objects", config="rare_objects.py", text="more rare objects in the training scenes"),
    dict(name="four frames", config="four_frames.py", text="memory of three frames instead of one"),
    dict(name="lost cameras", config="lost_cameras.py", text="each camera lost in a tenth of the samples"),
    dict(name="stride 4", config="stride_4.py", text="image features of stride 4 instead of 8"),
    dict(name="704 x 256", config="wide_images.py", text="images of 704 x 256 instead of 448 x 160"),
    dict(name="horizon views", config="horizon_views.py", text="and the horizon of each camera in 800 x 450"),
    dict(name="trained backbone", config="trained_backbone.py", text="at a tenth of the rate"),
]
earlier = [
    dict(
        name="before its step became cheaper",
        taken=True,
        text="the demo as it was at commit 23b96bc, with plain convolutions, head and fusion at full width, rate "
        "0.002: 9.4 instead of 5.1 G multiply-adds a sample, 0.82 s a step; trained in another checkout, so taken in",
    ),
    dict(
        name="separable detection head",
        taken=True,
        text="the demo as it was at commit 502f25d: depthwise-separable convolutions in its detection head, too, and "
        "no weights common to the finer cells; taken in",
    ),
    dict(
        name="plain detection head",
        taken=True,
        text="plain convolutions in the detection head, but no weights common to the finer cells; taken in",
    ),
]

comparison = dict(
    title="Recipe",
    intro="Which changes of the demo's training help on scenes never seen. A number is bold where every seed lies on "
    "the same side of every seed of `demo`: by chance alone three runs beside three do that once in ten comparisons, "
    "so one bold number among twenty says nothing, and a lever whose bold ones agree says something. Equal samples: "
    "what a step teaches. Equal wall clock: what ten minutes teach, on a machine that does nothing else beside.",
    seeds=(0, 1, 2),
    sections=[
        dict(title="Equal samples", steps=600, base="demo", tables=tables, variants=[*levers, *earlier]),
        dict(title="Equal wall clock", seconds=510, base="demo", tables=timed_tables, variants=[*levers, earlier[0]]),
    ],
)
