"""Measure each figure and its floor in the same run.

`make bench` runs the measurement. `docs/performance.md` explains the figures.
"""
