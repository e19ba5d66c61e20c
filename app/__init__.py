"""Plumbing without domain and without HTTP: settings, database, errors, security, clock, money, logging."""

__version__ = "1.0.0"
