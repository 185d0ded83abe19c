"""Long polling for Flask and SQLAlchemy: a row that commits becomes a response that ends.

    poll = LegacyPoll(authorize=may_read)
    poll.init_app(app)
    app.register_blueprint(poll.blueprint, url_prefix="/poll")

    poll.publish(session, "orders", {"id": 7}, type="order.created")
    session.commit()

Importing this package patches, connects and starts nothing.
"""

from .errors import ConfigError, InvalidEvent, LegacyPollError, RequestError, StorageUnavailable
from .extension import LegacyPoll

__all__ = [
    "LegacyPoll",
    "LegacyPollError",
    "ConfigError",
    "StorageUnavailable",
    "RequestError",
    "InvalidEvent",
]
__version__ = "0.1.0"
