"""nuScenes and whatever comes in its format: tables checked, an index written and read, clips made of it."""
