"""What `launch/benchmark.py` measures, a suite a file; each has `run(options) -> list of results`."""
