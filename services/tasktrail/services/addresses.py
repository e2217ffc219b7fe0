"""Which addresses stay on this machine. Pure: no name is looked up.

is_loopback(urlsplit(url).hostname)
"""

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address, in brackets or not, is this machine's own; None and the empty one are not."""
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
