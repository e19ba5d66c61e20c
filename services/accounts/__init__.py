"""Accounts: who may log in and act, how logins end, and how guessing is limited."""
