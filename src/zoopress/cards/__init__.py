"""Cards: what users write of a model."""

from __future__ import annotations

from zoopress.cards.card import (
    Card as Card,
)
from zoopress.cards.card import (
    Data as Data,
)
from zoopress.cards.card import (
    RandomInput as RandomInput,
)
from zoopress.cards.card import (
    find_card as find_card,
)
from zoopress.cards.card import (
    load_card as load_card,
)
from zoopress.cards.card import (
    local_cards as local_cards,
)
