"""Keys of ours for machines: each configured by its digest, compared in constant time, vouched for.

Guarantees: pure; the key itself is configured and kept nowhere; a look-up compares with every key, so that time tells
nothing. A key is random text of 128 bits or more, made by the operator; its digest needs no salt then.

    keys = Keys(settings.api_keys)
    found = keys.find(presented)  # ApiKey | None
"""

import hashlib
import hmac
from collections.abc import Iterable

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.configuration import ApiKey


class Keys:
    """The configured keys.

    Raises:
        InvalidRequest: two keys have one name or one digest.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)
        for what in ("name", "sha256"):
            if len({getattr(key, what) for key in self._keys}) < len(self._keys):
                message = f"two api_keys have the same {what}; give each its own"
                raise InvalidRequest(message)

    def find(self, presented: str) -> ApiKey | None:
        """The key that this text is, if it is one."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).hexdigest()
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found
