"""What the data itself was made with."""

from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class FoundationSetting(Base):
    """A setting to which the stored data is bound, such as the time zone by which messages were dated."""

    __tablename__ = "foundation_settings"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
