"""What `make bench` measures: each figure beside its floor, in the same run. `docs/performance.md` explains it."""
