"""What a nightly refresh did, for people and for machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zoopress.orchestration.pins import CardState
from zoopress.orchestration.publishing import Publication


@dataclass
class NightlySummary:
    """What a refresh did.

    Attributes:
        repository: its folder.
        cards: those that moved, were left out or could not be asked about.
        computed: cells of which stages were computed.
        done: how many cells are.
        failed: cells that failed, with their reasons.
        commit: the commit with the results, None if nothing had changed.
        record: the commit that says where they were published, None if nothing had changed.
        pushed: what was pushed to: DVC's remote and git's upstream.
        published: how publishing each cell ended.
        problems: what went wrong besides, each with its remedy.
        removed: how many results were removed from the store; None if none should be.
    """

    repository: str
    cards: list[CardState] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    record: str | None = None
    pushed: list[str] = field(default_factory=list)
    published: list[Publication] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    removed: int | None = None

    @property
    def complete(self) -> bool:
        """Whether every cell is up to date, versioned and, if it shall be, published."""
        return not (self.failed or self.problems)

    @property
    def line(self) -> str:
        """What went wrong, in a line."""
        parts = [f"{len(self.failed)} failed", f"{len(self.problems)} problems"]
        return f"zoopress nightly in {self.repository}: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "repository": self.repository,
            "moved": [card.as_dict() for card in self.cards if card.moved],
            "left_out": {card.name: card.left_out for card in self.cards if card.left_out},
            "computed": self.computed,
            "failed": self.failed,
            "commit": self.commit,
            "record": self.record,
            "pushed": self.pushed,
            "published": [item.as_dict() for item in self.published],
            "problems": self.problems,
            **({} if self.removed is None else {"removed": self.removed}),
        }


def nightly_markdown(summary: NightlySummary) -> str:
    """Return a summary as Markdown."""
    moved = [card for card in summary.cards if card.moved]
    sections = {
        "Moved": [f"{c.name}: {c.branch} `{c.before}` → `{c.after}`" for c in moved],
        "Computed": summary.computed,
        "Failed": [f"**{name}**: {_line(reason)}" for name, reason in summary.failed.items()],
        "Problems": [_line(problem) for problem in summary.problems],
        "Committed": [f"`{c}`" for c in (summary.commit, summary.record) if c],
        "Pushed": summary.pushed,
        "Published": [
            f"[{item.repo_id}]({item.url}): {item.state}, `{item.commit}`"
            for item in summary.published
            if item.state != "failed"
        ],
    }
    lines = [f"# Nightly refresh of {summary.repository}"]
    for title, items in sections.items():
        lines += ["", f"## {title}", "", *([f"- {item}" for item in items] or ["nothing"])]
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())
