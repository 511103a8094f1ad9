"""Scored pairs of sentences: cosines against scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from text_models import make_task, save_model, write_rows
from zoopress.errors import CardError
from zoopress.evaluation.fidelity import run_all

LETTERS = "abcdefghijklmnop"


class Bag(nn.Module):
    """Embeds a text as the mean of its tokens' vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[..., None].float()
        result: Tensor = (self.table(input_ids) * weights).sum(1) / weights.sum(1)
        return result


def scored(count: int) -> list[dict[str, Any]]:
    return [
        {"sentence1": f"{LETTERS[i % 16]} {LETTERS[i // 16]}", "sentence2": LETTERS[i * 7 % 16]}
        | {"score": i * 5 % 6}
        for i in range(count)
    ]


def test_metrics_are_scipys_of_cosines_and_scores(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    data = write_rows(tmp_path / "rows.jsonl", scored(90))
    task = make_task(tmp_path, "sentence-similarity", dataset=data, evaluation_samples=30)
    module = Bag()
    found = task.metrics(run_all(task, module).statistics)
    rows = {(row["sentence1"], row["sentence2"]): row["score"] for row in scored(90)}
    tokenizer = task.tokenizer  # type: ignore[attr-defined]
    cosines, scores = [], []
    for row in range(30):
        first, second = str(task.show("test", row)).split("\n")
        one, two = (
            module(torch.tensor([ids]), torch.ones(1, len(ids)))
            for ids in (tokenizer(first)["input_ids"], tokenizer(second)["input_ids"])
        )
        cosines.append(float(torch.cosine_similarity(one, two).detach()))
        scores.append(rows[first, second])
    assert found["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-4)
    assert found["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, abs=1e-4)


def test_the_loss_is_0_where_cosines_are_the_scaled_scores(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    data = write_rows(tmp_path / "rows.jsonl", scored(60))
    task = make_task(tmp_path, "sentence-similarity", dataset=data)
    scores = torch.tensor([0.0, 5.0, 2.5])  # the smallest and largest to learn from are 0 and 5
    angles = torch.tensor([0.0, 1.0, 0.5]).acos()
    second = torch.stack([angles.cos(), angles.sin()], 1)
    pairs = torch.stack([torch.tensor([[2.0, 0.0]]).expand(3, 2), second], 1)
    assert float(task.loss(pairs, scores)) == pytest.approx(0, abs=1e-12)
    assert float(task.loss(pairs, torch.tensor([5.0, 5.0, 2.5]))) == pytest.approx(1 / 3)
    given = make_task(
        tmp_path, "sentence-similarity", dataset=data, preprocessing={"scores": [0, 10]}
    )
    assert float(given.loss(pairs, 2 * scores)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bad", ["high", None, float("nan")])
def test_a_score_that_is_no_number_is_named(bad: Any, tmp_path: Path) -> None:
    rows = [row | {"score": bad if i == 4 else row["score"]} for i, row in enumerate(scored(12))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task = make_task(tmp_path, "sentence-similarity", dataset=data, evaluation_samples=9)
    with pytest.raises(CardError, match=r"row 4 of part 'all': the score is .*; it must be a numb"):
        _ = [task.samples(split) for split in ("test", "calibration", "training")]  # type: ignore[arg-type]


def test_scores_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [row | {"score": 3} for row in scored(12)])
    task = make_task(tmp_path, "sentence-similarity", dataset=data)
    with pytest.raises(CardError, match="all 4 scores of the test split are 3"):
        task.samples("test")


def test_without_scores_there_are_no_metrics_and_nothing_to_learn(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    (tmp_path / "text.txt").write_text("\n".join(f"{a} {b}" for a in LETTERS for b in "ab"))
    task = make_task(tmp_path, "sentence-similarity", text=str(tmp_path / "text.txt"))
    run = run_all(task, Bag())
    assert task.metrics(run.statistics) == {}
    assert run.outputs[0].shape == (3, 8)
    with pytest.raises(CardError, match="has no labels to learn from"):
        task.loss(run.outputs[0], None)


def test_a_pairs_sentences_have_neighbours_of_their_own(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    data = write_rows(tmp_path / "rows.jsonl", scored(40))
    task = make_task(tmp_path, "sentence-similarity", dataset=data)
    scores = task.similarity(run_all(task, Bag()).outputs)
    assert scores is not None
    assert scores.shape == (8, 8)
    assert (scores.diagonal() == -torch.inf).all()


def test_a_model_that_embeds_no_sentences_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    data = write_rows(tmp_path / "rows.jsonl", scored(40))
    task = make_task(tmp_path, "sentence-similarity", dataset=data)
    with pytest.raises(
        CardError, match=r"expects embeddings \[samples, size\] .*a tensor \[6, 4, 9"
    ):
        run_all(task, nn.Embedding(40, 9))
