"""An embedded world in complete nuScenes format: cities, traffic, six cameras, a lidar, maps and CAN bus.

The way of one scene: :mod:`layout` (roads and map polygons) -> :mod:`scenery` and :mod:`traffic` (things and motion) ->
:mod:`renderer` and :mod:`lidar` (what the sensors see) -> :mod:`scene` (files and table rows); :mod:`generate` runs
many scenes in parallel and writes the tables.
"""
