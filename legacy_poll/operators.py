"""What operators ask a running worker: /metrics for Prometheus, /status for people.

For loopback, or whoever has the admin token. Behind a proxy on this host everybody comes from loopback, so a request
that a proxy forwarded counts as one from elsewhere, unless the proxies in front are known by the setting.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from typing import Any, Dict, Optional, Tuple

from . import upkeep
from .config import Settings
from .errors import Forbidden, StorageUnavailable, Unauthorized
from .runtime import Runtime

__all__ = ["check_operator", "gauges", "status"]

_FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")


def check_operator(settings: Settings, *, client: str, headers: Any, token: Optional[str]) -> None:
    """Lets an operator pass.

    Args:
        settings: The admin token, and the proxies.
        client: The address that the request counts for.
        headers: Of the request.
        token: Bearer token of the request, if any.

    Raises:
        Unauthorized: A token that is not the one.
        Forbidden: From elsewhere, and without one.
    """
    if token is not None and settings.admin_token:
        if hmac.compare_digest(token.encode("utf-8", "replace"), settings.admin_token.encode("utf-8")):
            return
        raise Unauthorized("this is not the admin token")
    forwarded = any(name in headers for name in _FORWARDED)
    if not _is_loopback(client) or (forwarded and not _vouched_for(client, settings, headers)):
        raise Forbidden("for loopback only, or with LEGACY_POLL_ADMIN_TOKEN as a Bearer token")


def _vouched_for(client: str, settings: Settings, headers: Any) -> bool:
    """Whether *client* is an address that our own proxies give: a request that came around one of them has too few
    entries, and counts for the peer's address, which is a proxy's."""
    entries, proxies = ",".join(headers.getlist("X-Forwarded-For")).split(","), settings.trusted_proxies
    if client == "unknown":
        return False  # a proxy's word, and no UNIX socket
    return 0 < proxies <= len(entries) and entries[-proxies].strip() == client


def _is_loopback(client: str) -> bool:
    if not client or client == "unknown":
        return True  # a UNIX socket
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False


def gauges(runtime: Runtime) -> Dict[str, Tuple[str, float]]:
    """Name -> help and value of everything that /metrics tells beside the counters of answers."""
    hub, publisher = runtime.hub, runtime.publisher
    cursor = hub.cursor
    return {
        "legacy_poll_held": ("Polls held now.", runtime.admission.held),
        "legacy_poll_held_limit": ("Most polls held at once.", runtime.admission.max_held),
        "legacy_poll_groups": ("Different sets of channels waited on now.", hub.groups),
        "legacy_poll_tail_events": ("Events in memory.", hub.remembered),
        "legacy_poll_position": ("Last position delivered by this worker.", cursor.position if cursor else 0),
        "legacy_poll_up": ("1 when the last look at the database worked.", 1 if publisher.live else 0),
        "legacy_poll_draining": ("1 when this worker is about to stop.", 1 if runtime.hold.draining else 0),
        "legacy_poll_ticks_total": ("Looks at the database.", publisher.ticks),
        "legacy_poll_moved_total": ("Events that this worker gave a position.", publisher.moved),
        "legacy_poll_set_aside_total": ("Outbox rows that this worker set aside.", publisher.set_aside),
        "legacy_poll_outages_total": (
            "Times that the database stopped working for this worker.",
            publisher.outages,
        ),
        "legacy_poll_cut_total": (
            "Answers cut off that a client did not take in time.",
            runtime.metrics.cuts,
        ),
        "legacy_poll_intermediary_cuts_total": (
            "Polls whose client says that something in between cut one before.",
            sum(runtime.metrics.intermediaries().values()),
        ),
        "legacy_poll_parked": (
            "Connections in the parked lane now, held or between two polls.",
            runtime.lane.connections if runtime.lane else 0,
        ),
        "legacy_poll_approvals": (
            "Requests that the parked lane holds without asking the application.",
            runtime.lane.approvals if runtime.lane else 0,
        ),
        "legacy_poll_approved_total": (
            "Polls that the application was not asked about.",
            runtime.lane.approved if runtime.lane else 0,
        ),
        "legacy_poll_catchup_reads_total": ("Reads of old events.", runtime.catchup.reads),
    }


def status(runtime: Runtime) -> Dict[str, Any]:
    """The worker and the log, for people and scripts."""
    publisher = runtime.publisher
    says: Dict[str, Any] = {
        "worker": {
            "pid": os.getpid(),
            "held": runtime.admission.held,
            "groups": runtime.hub.groups,
            "tail_events": runtime.hub.remembered,
            "cursor": str(runtime.hub.cursor) if runtime.hub.cursor else None,
            "draining": runtime.hold.draining,
            "failure": str(publisher.failure) if publisher.failure else None,
            "hints": runtime.hints(),
            "lane": runtime.lane_name,
        },
        "answers": runtime.metrics.counts(),
        "cut_after_seconds": {str(seconds): n for seconds, n in runtime.metrics.intermediaries().items()},
        "log": None,
    }
    try:
        says["log"] = upkeep.status(runtime.database, runtime.log).as_dict()
    except StorageUnavailable as error:
        says["error"] = str(error)
    return says
