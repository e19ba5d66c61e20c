"""What the product does, one capability a file: functions that take a session first, may flush, never commit."""
