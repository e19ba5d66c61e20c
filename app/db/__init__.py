"""Open databases: engines, drivers, URLs, failures, and migrations of the schema."""
