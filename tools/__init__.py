"""Checks of this project's own that `make check` runs."""
