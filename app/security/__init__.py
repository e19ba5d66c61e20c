"""Security: password hashes, access tokens, and keys that must not be used."""
