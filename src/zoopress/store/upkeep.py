"""List, check and collect the results of a store, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator

from zoopress.store.collect import Collected, Policy, Stored
from zoopress.store.store import Store
from zoopress.store.upkeep_local import check_local, collect_local, list_local
from zoopress.store.upkeep_shared import check_shared, collect_shared, list_shared


def list_stored(store: Store) -> Iterator[Stored]:
    """Yield all results, in no order.

    Raises:
        StoreError: if a shared store does not answer.
    """
    return list_local(store.local) if store.shared is None else list_shared(store.shared)


def check(store: Store) -> Iterator[tuple[str, bool]]:
    """Read every file and compare it with its digest; yields keys and whether all is right.

    What is damaged is set aside, and computed again when it is needed.

    Raises:
        StoreError: if a shared store does not answer.
    """
    return check_local(store.local) if store.shared is None else check_shared(store.shared)


def collect(store: Store, policy: Policy, dry_run: bool = False) -> Collected:
    """Remove what a policy does not let stay; never what a living run uses.

    Raises:
        StoreError: if the store does not answer or cannot be written.
    """
    if store.shared is None:
        return collect_local(store.local, policy, dry_run)
    return collect_shared(store.shared, policy, dry_run)
