"""Chat: conversations, turns, and the services that answer them."""
