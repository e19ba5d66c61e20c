"""Manage accounts: users, logins, keys, and limits against guessing."""
