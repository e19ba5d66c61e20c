"""Databases: engines, drivers, URLs, failures, and the schema's revisions."""
