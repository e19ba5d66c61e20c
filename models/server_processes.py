"""Map the server processes that run turns."""

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class ServerProcess(Base):
    """Store a process with pending turns, which increments `heartbeats` while it lives."""

    __tablename__ = "server_processes"

    id: Mapped[str] = mapped_column(primary_key=True)
    heartbeats: Mapped[int] = mapped_column(BigInteger)
