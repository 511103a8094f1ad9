"""Retrieval: ranks and losses against the plainest computation, texts and images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from text_models import make_task, open_task, save_model, write_rows
from zoopress.errors import CardError
from zoopress.evaluation.fidelity import run_all
from zoopress_zoo.tasks import embedding
from zoopress_zoo.tasks.embedding import best_ranks, contrastive_loss, pair_numbers

LETTERS = "abcdefghijklmnop"


def test_equal_values_have_one_number() -> None:
    found = pair_numbers(["a", "b", "a", "c"], ["x", "x", "y", "z"])
    assert found.tolist() == [[0, 0], [1, 0], [0, 2], [3, 3]]


@st.composite
def pools(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw pairs of which some have equal queries or documents, with embeddings that often tie."""
    count = draw(st.integers(1, 12))
    names = st.lists(st.integers(0, 5), min_size=count, max_size=count)
    queries, documents = draw(names), draw(names)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tables = [torch.randint(-2, 3, (6, 2), generator=generator).float() for _ in range(2)]
    return tables[0][queries], tables[1][documents], pair_numbers(queries, documents)


@given(pools(), st.integers(1, 4))
@settings(deadline=None)
def test_ranks_are_those_of_the_plainest_count(
    pool: tuple[torch.Tensor, torch.Tensor, torch.Tensor], block: int
) -> None:
    queries, documents, numbers = pool
    pairs = numbers.tolist()
    expected = []
    for row, (query, _) in enumerate(pairs):
        scores = {d: float(queries[row] @ documents[d]) for _, d in pairs}
        right = {d for q, d in pairs if q == query}
        best = max(scores[d] for d in right)
        expected.append(1 + sum(s >= best for d, s in scores.items() if d not in right))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "_BLOCK", block)
        assert best_ranks(queries, documents, numbers).tolist() == expected


def test_scores_that_are_not_numbers_find_nothing() -> None:
    queries = torch.full((3, 2), torch.nan)
    numbers = torch.arange(3)[:, None].expand(3, 2)
    assert best_ranks(queries, torch.rand(3, 2), numbers).tolist() == [3, 3, 3]


def test_the_loss_is_that_of_the_plainest_softmax() -> None:
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([[0, 0], [1, 1], [2, 1], [1, 3]])
    wrong = {0: [1, 2, 3], 1: [0], 2: [0, 3], 3: [0, 2]}  # columns that are no answer to the row
    each = [
        -math.log(scores[i, i].exp() / (scores[i, i].exp() + scores[i, wrong[i]].exp().sum()))
        for i in range(4)
    ]
    assert float(contrastive_loss(scores, numbers)) == pytest.approx(sum(each) / 4, rel=1e-6)


class Bag(torch.nn.Module):
    """Embeds a text as the mean of its tokens' vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(40, 8)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        weights = attention_mask[..., None].float()
        result: torch.Tensor = (self.table(input_ids) * weights).sum(1) / weights.sum(1)
        return result


def questions(count: int) -> list[dict[str, str]]:
    return [
        {
            "question": f"{LETTERS[i % 16]} {LETTERS[i // 16]} a",
            "answer": f"{LETTERS[i * 5 % 16]} b",
        }
        for i in range(count)
    ]


def test_documents_are_looked_for_in_the_whole_split_whatever_the_batches(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    data = write_rows(tmp_path / "rows.jsonl", questions(90))
    module = Bag()
    found, ranks = [], []
    for size in (3, 40):
        task = make_task(
            tmp_path, "text-retrieval", dataset=data, evaluation_samples=40, batch_size=size
        )
        statistics = run_all(task, module).statistics
        found.append(task.metrics(statistics))
        ranks = statistics["rank"].tolist()
    assert found[0] == pytest.approx(found[1])
    assert found[0]["recall_at_1"] == sum(rank == 1 for rank in ranks) / 40
    assert found[0]["recall_at_10"] == sum(rank <= 10 for rank in ranks) / 40
    assert found[0]["mean_reciprocal_rank"] == pytest.approx(sum(1 / r for r in ranks) / 40)
    gains = [1 / math.log2(1 + rank) for rank in ranks if rank <= 10]
    assert found[0]["ndcg_at_10"] == pytest.approx(sum(gains) / 40)
    assert max(ranks) <= 16  # there are no more different answers


def test_training_brings_queries_to_their_documents(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    rows = [{"query": f"{a} {b}", "document": f"{b} {a} un"} for a in LETTERS for b in "abcd"]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task = make_task(tmp_path, "text-retrieval", dataset=data, evaluation_samples=16)
    module = Bag()
    before = task.metrics(run_all(task, module).statistics)["mean_reciprocal_rank"]
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    samples = task.samples("training")
    for _ in range(30):
        batch = samples.batch(range(len(samples)))
        optimizer.zero_grad()
        task.loss(task.forward(module, batch.inputs), batch.targets).backward()
        optimizer.step()
    after = task.metrics(run_all(task, module).statistics)["mean_reciprocal_rank"]
    assert after > before


# Images and texts


def captions(folder: Path, count: int) -> str:
    """Save colored images of several sizes and return a dataset of them with captions."""
    draw = np.random.default_rng(0)
    import pandas  # in the development group, for Parquet with bytes

    rows: list[dict[str, Any]] = []
    for i in range(count):
        pixels = draw.integers(0, 256, (10 + i % 5, 12, 3), dtype=np.uint8)
        path = folder / f"{i}.png"
        Image.fromarray(pixels).save(path)
        rows.append({"image": {"bytes": path.read_bytes(), "path": None}})
        rows[-1]["caption"] = f"{LETTERS[i % 16]} {LETTERS[i // 16]}"
    pandas.DataFrame(rows).to_parquet(folder / "rows.parquet")
    return f"file:{folder / 'rows.parquet'}"


def test_the_loss_and_scores_are_clips_own(tmp_path: Path) -> None:
    save_model(tmp_path, "CLIPModel")
    task, module = open_task(
        tmp_path,
        "image-text-retrieval",
        dataset=captions(tmp_path, 40),
        preprocessing={"size": 16, "max_tokens": 16, "channels": 3},
        evaluation_samples=6,
        batch_size=6,
    )
    batch = task.examples("test")[0]
    output = task.forward(module, batch.inputs)
    theirs = module(**batch.inputs, return_loss=True)
    assert torch.allclose(output[:, 0] @ output[:, 1].T, theirs.logits_per_image, atol=1e-4)
    loss = task.loss(output, batch.targets)
    assert float(loss.detach()) == pytest.approx(float(theirs.loss.detach()), rel=1e-5)
    loss.backward()
    assert module.logit_scale.grad.abs() > 0

    run = run_all(task, module)
    assert task.metrics(run.statistics)["image_to_text_recall_at_1"] == pytest.approx(
        float((theirs.logits_per_image.argmax(1) == torch.arange(6)).double().mean())
    )
    assert task.metrics(run.statistics)["text_to_image_recall_at_1"] == pytest.approx(
        float((theirs.logits_per_text.argmax(1) == torch.arange(6)).double().mean())
    )
    scores = task.similarity(run.outputs)
    assert scores is not None
    assert torch.allclose(scores, theirs.logits_per_image, atol=1e-4)
    assert str(task.show("test", 0)).startswith("data:image/png;base64,")


class Towers(torch.nn.Module):
    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> Any:
        pixels = pixel_values.flatten(1)[:, :4]
        return pixels, input_ids[:, :4].float()


def test_a_module_of_ones_own_returns_a_pair(tmp_path: Path) -> None:
    save_model(tmp_path, "CLIPModel")
    task = make_task(
        tmp_path,
        "image-text-retrieval",
        dataset=captions(tmp_path, 20),
        preprocessing={"size": 4, "channels": 1},
    )
    output = task.forward(Towers(), task.batches("test")[0])
    assert output.shape == (3, 2, 4)
    assert torch.allclose(output.norm(dim=2), torch.tensor(20.0).sqrt())  # 1 ÷ 0.05


def test_what_gives_no_two_embeddings_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "CLIPModel")
    task = make_task(
        tmp_path,
        "image-text-retrieval",
        dataset=captions(tmp_path, 20),
        preprocessing={"size": 4, "channels": 1},
    )
    with pytest.raises(CardError, match=r"two embeddings .*got a tensor \[3, 1, 4, 4\]"):
        task.forward(torch.nn.Identity(), task.batches("test")[0])


def test_images_of_mixed_sizes_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "CLIPModel")
    task = make_task(tmp_path, "image-text-retrieval", dataset=captions(tmp_path, 20))
    with pytest.raises(CardError, match=r"Say what all become"):
        task.samples("test")
