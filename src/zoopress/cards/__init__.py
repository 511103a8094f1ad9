"""Cards: what users write of a model."""

from __future__ import annotations

from zoopress.cards.card import (
    Card as Card,
    Data as Data,
    RandomInput as RandomInput,
    find_card as find_card,
    load_card as load_card,
    local_cards as local_cards,
)
