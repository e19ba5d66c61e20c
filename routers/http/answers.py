"""Define bodies that several routes answer with."""

from pydantic import BaseModel


class Done(BaseModel):
    """What was done."""

    message: str
