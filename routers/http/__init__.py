"""What every route stands on: the connection, the body, the caller, and errors as answers.."""
