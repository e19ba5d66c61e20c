"""Plumbing without domain and HTTP: settings, databases, errors, security, logs."""

from pathlib import Path

__version__ = "1.0.0"

BASE_DIR = Path(__file__).resolve().parent.parent
"""The project's directory, to which relative paths are relative; the working directory does not matter."""
