"""HTTP: dependencies, schemas, error handlers, one router a file; no SQL."""
