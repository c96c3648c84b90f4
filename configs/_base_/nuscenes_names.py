"""nuScenes' names, for configs: a config cannot import a package's values and be written out again as text.

A test holds them to ``bevstack/datasets/nuscenes/taxonomy.py``, which says what each list is.
"""

classes = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
vehicle_classes = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")
map_layers = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
