"""Server processes that answer turns."""

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class ServerProcess(Base):
    """A process with pending turns; it changes `heartbeats` every few seconds while it lives."""

    __tablename__ = "server_processes"

    id: Mapped[str] = mapped_column(primary_key=True)
    heartbeats: Mapped[int] = mapped_column(BigInteger)
