"""The store: finished stage results, found by what they were computed from.

A store is a folder that the processes of one machine share (`local`), or any URL that fsspec knows,
which machines share (`shared`); with a URL, a folder of this machine stands in front of it. A key
is the SHA-256 of all that a result depends on. Failed results are never stored.
"""

from zoopress.store.entry import Entry
from zoopress.store.files import digest, file_digest, write_atomic
from zoopress.store.store import Claim, Store

__all__ = ["Claim", "Entry", "Store", "digest", "file_digest", "write_atomic"]
