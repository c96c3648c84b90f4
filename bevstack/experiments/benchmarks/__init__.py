"""What is timed and counted, one file a suite, each against what people would use instead (``tools/benchmark.py``)."""
