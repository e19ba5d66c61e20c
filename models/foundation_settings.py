"""Map the settings that are stored with the data."""

from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class FoundationSetting(Base):
    """Store a setting that the data depends on, like the time zone."""

    __tablename__ = "foundation_settings"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
