"""Does segmentation emerge? A grid of runs, what is measured of them, and what follows.

`python -m benchmarks.emergence`; docs/emergence.md has the question, the measures and the main
comparison, as they were written down before the grid was run, and the results.
"""
