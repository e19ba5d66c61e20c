"""Map the files that hold archived messages."""

from datetime import datetime

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Archive(Base):
    """Describe a file of archived messages.

    Only the first `size_bytes` of the file count; `sha256` is their checksum. `restored` of the `messages` are back in
    the database, in the order of the file.
    """

    __tablename__ = "archives"

    name: Mapped[str] = mapped_column(primary_key=True)
    messages: Mapped[int] = mapped_column(BigInteger)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    restored: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
