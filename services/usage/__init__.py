"""Count usage: the ledger of messages, its rollups, prices, and reports."""
