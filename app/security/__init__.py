"""Hash passwords, sign access tokens, and detect weak signing keys."""
