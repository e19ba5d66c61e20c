"""Usage: the ledger of messages, its rollups, prices, and what callers read of them."""
