"""What is compared of two builds of one model."""

import torch

from zoopress.evaluation.repeatability import differing


def test_what_has_no_memory_on_either_side_is_not_compared() -> None:
    real, empty = torch.arange(3), torch.empty(3, dtype=torch.int64, device="meta")
    assert differing({"a": real, "b": empty}, {"a": empty, "b": real}) == []
    assert differing({"a": real}, {"a": real + 1}) == ["a"]
