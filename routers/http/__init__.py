"""Handle HTTP for every route: connections, bodies, callers, and errors."""
