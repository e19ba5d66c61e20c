"""Plumbing without domain and without HTTP: settings, database, errors, security, clock, money, logging."""

from pathlib import Path

__version__ = "1.0.0"

BASE_DIR = Path(__file__).resolve().parent.parent
"""The project's directory: relative paths are relative to it, wherever a command is called from."""
