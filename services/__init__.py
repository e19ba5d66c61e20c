"""Implement the product by capability: `backfill | chat` → `usage` → `accounts`.

Operations take a session first, may flush, and never commit. Workflows take a database and own their transactions.
"""
