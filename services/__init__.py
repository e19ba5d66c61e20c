"""What the product does, by capability: `backfill` and `chat` use `usage`, which uses `accounts`.

Operations take a session first, may flush, and never commit. Workflows take a database and own their transactions.
"""
