"""Serve HTTP: routes and schemas, one router a file; no SQL."""
