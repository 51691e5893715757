"""The address of a cluster's dashboard, looked at before anything is sent to it.

One that takes jobs from anyone is refused (ShadowRay, CVE-2023-48022): who can reach it can run programs on
the cluster, and read what runs there.
"""

import urllib.error
import urllib.request
from ipaddress import ip_address
from urllib.parse import urlsplit

from widthwise.proxies.validation import ConfigError

DASHBOARD = "http://127.0.0.1:8265"
"""Where Ray's dashboard listens if not told otherwise."""
ANSWER_SECONDS = 8


def dashboard(address: str) -> str:
    """Return the URL of a dashboard given as ``host:port`` or as a URL.

    Raises:
        ConfigError: it is neither.
    """
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        good = (
            parts.scheme in ("http", "https") and parts.hostname and parts.port and not parts.path.strip("/")
        )
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"address: must be host:port or http(s)://host:port of a dashboard, got {address!r}"
        )
    return url.rstrip("/")


def require_guarded(address: str, *, insecure: bool = False) -> None:
    """Refuse a dashboard that takes jobs from anyone, unless only this machine reaches it.

    Args:
        address: the dashboard's URL.
        insecure: take it nevertheless.

    Raises:
        ConfigError: nothing answers, or it is open to a network.
    """
    try:
        # By a request without a token: who is answered needs none.
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=ANSWER_SECONDS):
            guarded = False
    except urllib.error.HTTPError as error:
        error.close()
        guarded = error.code in (401, 403)
        if not guarded:
            raise ConfigError(
                f"address: no Ray dashboard at {address!r} (HTTP status {error.code})"
            ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"address: no Ray dashboard answers at {address!r} ({reason})") from None
    if guarded or insecure or _is_loopback(address):
        return
    raise ConfigError(
        f"address: {address!r} runs programs for anyone who reaches it (ShadowRay, CVE-2023-48022); start the "
        "cluster with RAY_AUTH_MODE=token, reach it through a tunnel, or add --insecure"
    )


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
