"""Plumbing without domain and without HTTP: settings, database, errors, security, clock, money, logging."""
