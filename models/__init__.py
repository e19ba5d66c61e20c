"""Map the tables, one noun a file; Alembic creates them (`alembic/versions`)."""

from models.api_keys import ApiKey
from models.archived_keys import ArchivedKey
from models.archives import Archive
from models.attempts import Attempt
from models.base import Base
from models.conversations import Conversation
from models.feedback import Feedback
from models.foundation_settings import FoundationSetting
from models.message_images import MessageImage
from models.messages import Message
from models.model_categories import ModelCategory
from models.password_resets import PasswordReset
from models.preferences import Preferences
from models.refresh_tokens import RefreshToken
from models.revoked_tokens import RevokedToken
from models.server_processes import ServerProcess
from models.usage_adjustments import UsageAdjustment
from models.user_daily_token_usage import UserDailyTokenUsage
from models.user_monthly_token_usage import UserMonthlyTokenUsage
from models.users import User

__all__ = [
    "ApiKey",
    "Archive",
    "ArchivedKey",
    "Attempt",
    "Base",
    "Conversation",
    "Feedback",
    "FoundationSetting",
    "Message",
    "MessageImage",
    "ModelCategory",
    "PasswordReset",
    "Preferences",
    "RefreshToken",
    "RevokedToken",
    "ServerProcess",
    "UsageAdjustment",
    "User",
    "UserDailyTokenUsage",
    "UserMonthlyTokenUsage",
]
