"""Every recipe's programs compiled for chips that are not there, and what their memory would hold.

`python -m benchmarks.compiled`; what was compiled is in docs/results/compiled.json, and from it the
tables of docs/training.md and docs/performance.md.
"""
