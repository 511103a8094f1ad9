"""Cards that follow a branch: which commit they are pinned to, and how they move on.

`zoopress zoo add` writes `source: hub:org/name@COMMIT  # pinned from main`. A refresh changes that
one commit, and nothing else in the file.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zoopress.cards import Card, find_card
from zoopress.cards.maker import card_maker, pinned_from
from zoopress.cells.selection import Selected
from zoopress.errors import RepositoryError
from zoopress.plugins import Plugins
from zoopress.repository import Repository
from zoopress.store import write_atomic

_PIN = re.compile(r"^(source: \S+@)([0-9a-f]{40})(  # pinned from \S+)$", re.MULTILINE)


@dataclass(frozen=True)
class CardState:
    """A card of the matrix in a refresh.

    Attributes:
        name: the card's.
        reference: finds it again; a file's path if it is one.
        branch: what it is pinned from, None if it follows nothing.
        before: the commit that it is pinned to in git.
        after: the one that its file names now.
        left_out: why it takes no part.
    """

    name: str
    reference: str
    branch: str | None = None
    before: str | None = None
    after: str | None = None
    left_out: str | None = None

    @property
    def moved(self) -> bool:
        """Whether its file names another commit than git has."""
        return self.before != self.after

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {key: value for key, value in asdict(self).items() if key != "left_out"}


def look_at_card(selected: Selected[Card], repository: Repository, plugins: Plugins) -> CardState:
    """Compare a card with the one in git.

    Another commit in its pin is what a refresh that was killed leaves behind, and goes along. Any
    other change is the user's own: what comes of it could not be reproduced from a commit.
    """
    state = CardState(selected.name, selected.reference)
    if selected.item is None:
        return state  # the zoo's run says what is wrong with it
    path = find_card(selected.reference, plugins).absolute()
    if repository.root not in path.parents:
        return state  # of an installed package
    state = replace(state, reference=str(path), branch=pinned_from(path))
    changed = repository.changed([path, *_files_of(selected.item)])
    others = ", ".join(str(p.relative_to(repository.root)) for p in changed if p != path)
    if others:
        return replace(state, left_out=f"{others}: changed and not committed")
    text, committed = path.read_text(encoding="utf-8"), repository.committed_text(path)
    if committed is None:
        return replace(state, left_out=f"{path} is not committed yet")
    if _PIN.sub(r"\1\3", text) != _PIN.sub(r"\1\3", committed):
        return replace(state, left_out=f"{path} has changes that are not committed")
    return replace(state, before=_pin(committed), after=_pin(text))


def follow(state: CardState, card: Card, plugins: Plugins) -> CardState:
    """Ask the source whether the branch of a card moved; if so, write the commit into the card.

    Raises:
        HubError: if the Hub cannot tell.
        RepositoryError: if it may not be asked.
    """
    maker = card_maker(card.scheme, plugins)
    if state.branch is None or state.after is None or maker is None:
        return state
    newest = maker.commit(card, state.branch)
    if newest is None:
        raise RepositoryError(
            f"whether {state.branch} moved was not asked. Unset HF_HUB_OFFLINE to ask."
        )
    path = Path(state.reference)
    if newest != state.after:
        text = path.read_text(encoding="utf-8")
        write_atomic(path.resolve(), _PIN.sub(rf"\g<1>{newest}\g<3>", text, count=1))
    return replace(state, after=newest)


def _pin(text: str) -> str | None:
    found = _PIN.search(text)
    return found[2] if found else None


def _files_of(card: Card) -> list[Path]:
    """Return the files beside a card that its result depends on."""
    data = card.data
    named = [card.factory, *((data.text, data.file, data.inputs) if data else ())]
    named += [card.location] if card.scheme == "path" else []
    places = [name.rpartition(":")[0] or name for name in named if name]
    paths = {(card.root / place).resolve() for place in places}
    return sorted(path for path in paths if path.exists())
