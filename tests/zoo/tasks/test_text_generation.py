"""Language models: windows of documents, perplexity, and what is told of targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import assume, given, strategies as st

from text_models import SPECIAL, VOCABULARY, make_task, open_task, save_model, write_rows
from zoopress.cards import Card
from zoopress.errors import CardError
from zoopress.evaluation.fidelity import compare_outputs, run_all
from zoopress.tasks import Dataset, Split, Table, Task
from zoopress_zoo.tasks import language_model
from zoopress_zoo.tasks.language_model import (
    IGNORED,
    affordable,
    language_model_metrics,
    token_loss,
    token_statistics,
)
from zoopress_zoo.tasks.text_generation import TextGeneration

SPLITS: tuple[Split, ...] = get_args(Split)
END = SPECIAL.index("</s>")


def windows(task: Task, split: Split) -> torch.Tensor:
    samples = task.samples(split)
    inputs: torch.Tensor = samples.batch(range(len(samples))).inputs["input_ids"]
    return inputs


def documents_task(folder: Path, documents: list[list[int]], **data: Any) -> Task:
    rows = write_rows(folder / "rows.jsonl", [{"text": tokens} for tokens in documents])
    given = {"preprocessing": {"context_length": 4}, "evaluation_samples": 3}
    return make_task(folder, "text-generation", dataset=rows, **(given | data))


class Lists(Table, Dataset):
    """Documents in memory."""

    def __init__(self, documents: list[list[int]]) -> None:
        self._documents = documents

    @property
    def columns(self) -> list[str]:
        return ["text"]

    def __len__(self) -> int:
        return len(self._documents)

    def values(self, column: str, rows: Sequence[int]) -> list[list[int]]:
        return [self._documents[row] for row in rows]

    def parts(self) -> dict[str, Table]:
        return {"all": self}

    def fingerprint(self) -> str:
        return ""


def of_lists(documents: list[list[int]]) -> Task:
    data = {"dataset": "file:none", "preprocessing": {"context_length": 4}}
    counts = {"evaluation_samples": 3, "calibration_samples": 2, "validation_samples": 2}
    card = Card.model_validate(
        {"name": "lists", "source": "path:none", "task": "text-generation", "data": data | counts}
    )
    task = TextGeneration(card, Path())
    task.dataset = Lists(documents)
    return task


@given(st.lists(st.integers(0, 13), min_size=40, max_size=80), st.randoms(use_true_random=False))
def test_no_document_is_in_two_splits_whatever_their_order(sizes: list[int], draw: Any) -> None:
    # Every token tells which document it is of; a third of the documents are there twice.
    documents = [[100 * i + n for n in range(size)] for i, size in enumerate(sizes)]
    assume(sum(map(len, documents)) > 120)
    documents += documents[::3]
    task, other = of_lists(documents), of_lists(draw.sample(documents, len(documents)))
    found = {split: windows(task, split) for split in SPLITS}
    owners = {split: set((tokens // 100).flatten().tolist()) for split, tokens in found.items()}
    for one, two in combinations(SPLITS, 2):
        assert not owners[one] & owners[two]
    assert all(torch.equal(windows(other, split), found[split]) for split in SPLITS)


def test_windows_are_documents_one_after_the_other_without_overlap(tmp_path: Path) -> None:
    documents = [[10 * i + n for n in range(1 + i % 5)] for i in range(1, 60)]
    task = documents_task(tmp_path, documents)
    joined = {tuple(document): [] for document in documents}  # type: ignore[var-annotated]
    for split in SPLITS:
        tokens = windows(task, split).flatten().tolist()
        place = 0
        while place < len(tokens):
            whole = documents[tokens[place] // 10 - 1]
            assert tokens[place : place + len(whole)] == whole[: len(tokens) - place]
            joined[tuple(whole)].append(split)
            place += len(whole)
    assert all(len(split) <= 1 for split in joined.values())
    assert [len(task.samples(s)) for s in ("test", "calibration")] == [3, 2]


def test_a_document_of_the_test_part_is_not_learned_from(tmp_path: Path) -> None:
    common = [7, 7, 7, 7]
    for part, first in (("train", 100), ("test", 500)):
        documents = [common, *([first + i] * 4 for i in range(40))]
        write_rows(tmp_path / f"{part}.jsonl", [{"document": tokens} for tokens in documents])
    task = make_task(
        tmp_path,
        "text-generation",
        dataset=f"file:{tmp_path}",
        preprocessing={"context_length": 4},
        evaluation_samples=41,
    )
    assert common in windows(task, "test").tolist()
    for split in ("calibration", "validation", "training"):
        assert common not in windows(task, split).tolist()
        assert (windows(task, split) < 500).all()


def text(count: int) -> str:
    """Return distinct paragraphs of known words."""
    letters = "abcdefghijklmnop"
    return "\n\n".join(
        " ".join(letters[(i * n + n // 3 + i // 16) % 16] for n in range(1, 12))
        for i in range(count)
    )


def test_perplexity_is_that_of_the_models_own_loss(tmp_path: Path) -> None:
    save_model(tmp_path, "LlamaForCausalLM")
    (tmp_path / "text.txt").write_text(text(80))
    task, module = open_task(
        tmp_path,
        "text-generation",
        text=str(tmp_path / "text.txt"),
        preprocessing={"context_length": 16},
    )
    run = run_all(task, module)
    found = task.metrics(run.statistics)
    tokens = windows(task, "test")
    with torch.inference_mode():
        output = module(input_ids=tokens, labels=tokens)
    assert found["perplexity"] == pytest.approx(math.exp(float(output.loss)), rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(math.log2(found["perplexity"]))
    right = (output.logits[:, :-1].argmax(2) == tokens[:, 1:]).double().mean()
    assert found["token_accuracy"] == pytest.approx(float(right))
    loss = task.loss(task.forward(module, {"input_ids": tokens}), tokens)
    assert float(loss.detach()) == pytest.approx(float(output.loss), rel=1e-6)
    assert run.statistics["tokens"].tolist() == [15] * 4


def test_documents_of_a_text_are_paragraphs_ended_by_the_end_token(tmp_path: Path) -> None:
    save_model(tmp_path, "LlamaForCausalLM")
    (tmp_path / "text.txt").write_text("a b\nc\n\n" * 3 + text(60))
    task = make_task(
        tmp_path,
        "text-generation",
        text=str(tmp_path / "text.txt"),
        preprocessing={"context_length": 12},
    )
    shown = [str(task.show("test", row)) for row in range(4)]
    assert all(window.split().count("</s>") == 1 for window in shown)
    assert windows(task, "test")[0, -1] == END
    everything = " ".join(str(task.show(s, r)) for s in SPLITS for r in range(len(task.samples(s))))
    assert everything.count("a b c </s>") <= 1  # it stands there three times, and counts once


def test_a_text_without_paragraphs_has_a_document_a_line(tmp_path: Path) -> None:
    from zoopress_zoo.text import read_documents

    (tmp_path / "lines.txt").write_text("one\ntwo \n three\none\n")
    assert read_documents("lines.txt", tmp_path) == ("one", "two", "three")
    (tmp_path / "blocks.txt").write_text("one\ntwo\n\n\nthree\n \none\ntwo\n")
    assert read_documents("blocks.txt", tmp_path) == ("one\ntwo", "three")
    (tmp_path / "empty.txt").write_text(" \n\n \n")
    with pytest.raises(CardError, match="has no line of text"):
        read_documents("empty.txt", tmp_path)


def test_more_windows_than_the_text_has_are_refused_with_their_number(tmp_path: Path) -> None:
    task = documents_task(tmp_path, [[i] * 4 for i in range(20)], evaluation_samples=21)
    with pytest.raises(
        CardError,
        match=r"'data.evaluation_samples' is 21, but the 20 documents that are left make 20 "
        r"windows of 4 tokens",
    ):
        task.samples("test")
    task = documents_task(tmp_path, [[i] * 4 for i in range(20)], evaluation_samples=19)
    with pytest.raises(CardError, match=r"'data.calibration_samples' is 2, but the 1 documents"):
        task.samples("test")


def test_a_missing_document_is_none_and_a_number_is_refused(tmp_path: Path) -> None:
    documents = [[i] * 4 for i in range(20)]
    task = documents_task(tmp_path, [*documents, None, []])  # type: ignore[list-item]
    assert len(task.samples("test")) == 3
    with pytest.raises(
        CardError, match=r"row 20 of part 'all': the document is 7; it must be text"
    ):
        documents_task(tmp_path, [*documents, 7]).samples("test")  # type: ignore[list-item]


def test_subgroups_of_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no subgroups"):
        documents_task(tmp_path, [[1]], groups=["language"])


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    save_model(tmp_path, "LlamaForCausalLM")
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": [1, 2, VOCABULARY, i]} for i in range(40)])
    task = make_task(tmp_path, "text-generation", dataset=rows, preprocessing={"context_length": 4})
    scores = torch.zeros(3, 4, VOCABULARY)
    with pytest.raises(CardError, match=rf"scores {VOCABULARY} tokens, and the text has token"):
        task.statistics(scores, windows(task, "test")[:3])


def test_a_model_that_scores_no_tokens_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    (tmp_path / "text.txt").write_text(text(80))
    task, module = open_task(
        tmp_path,
        "text-generation",
        text=str(tmp_path / "text.txt"),
        preprocessing={"context_length": 8},
    )
    with pytest.raises(CardError, match=r"expects token scores .*last_hidden_state \[3, 8, 16\]"):
        run_all(task, module)


def test_batches_are_small_where_outputs_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert affordable(32, 256, 49152) == 5
    assert affordable(32, 1024, 256_000) == 1
    assert affordable(32, 64, 1000) == 32
    save_model(tmp_path, "LlamaForCausalLM")
    (tmp_path / "text.txt").write_text(text(80))
    task, module = open_task(
        tmp_path,
        "text-generation",
        text=str(tmp_path / "text.txt"),
        preprocessing={"context_length": 8},
    )
    monkeypatch.setattr(language_model, "MAX_BATCH_ELEMENTS", 2 * 8 * VOCABULARY)
    assert [len(example.targets) for example in task.examples("test")] == [2, 2]
    # Only what fits is kept for comparison, and fidelity says of how many windows it is.
    monkeypatch.setattr("zoopress.evaluation.fidelity.MAX_OUTPUT_ELEMENTS", 8 * VOCABULARY)
    run = run_all(task, module)
    assert run.statistics["nll"].shape == (4,)
    assert compare_outputs(task, run.outputs, run.outputs).samples == 2


def test_statistics_by_hand() -> None:
    probabilities = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.5, 0.5]]])
    targets = torch.tensor([[1, 0], [0, IGNORED]])
    rows = token_statistics(probabilities.log(), targets)
    assert rows["nll"].tolist() == pytest.approx([math.log(2) + math.log(4), -math.log(0.9)])
    assert rows["tokens"].tolist() == [2, 1]
    assert rows["right"].tolist() == [0, 1]
    found = language_model_metrics(rows)
    total = math.log(2) + math.log(4) - math.log(0.9)
    assert found["perplexity"] == pytest.approx(math.exp(total / 3))
    assert found["token_accuracy"] == pytest.approx(1 / 3)
    assert float(token_loss(probabilities.log(), targets)) == pytest.approx(total / 3)
    nothing = torch.full_like(targets, IGNORED)
    assert float(token_loss(probabilities.log(), nothing)) == 0


# Text to text


def pairs(count: int) -> list[dict[str, str]]:
    lines = text(count).split("\n\n")
    return [
        {"source": line[: 3 + i % 9], "target": line[4 : 9 + i % 7]} for i, line in enumerate(lines)
    ]


def test_text_to_text_loss_is_the_models_own(tmp_path: Path) -> None:
    save_model(tmp_path, "T5ForConditionalGeneration")
    data = write_rows(tmp_path / "rows.jsonl", pairs(60))
    task, module = open_task(tmp_path, "text-to-text", dataset=data, batch_size=4)
    example = task.examples("test")[0]
    inputs = dict(example.inputs)
    start = inputs.pop("decoder_input_ids")
    assert (start[:, 0] == 0).all()
    with torch.inference_mode():
        theirs = module(**inputs, labels=example.targets)
        ours = task.forward(module, example.inputs)
    seen = example.targets != IGNORED
    assert torch.allclose(ours[seen], theirs.logits[seen], atol=1e-5)
    assert float(task.loss(ours, example.targets)) == pytest.approx(float(theirs.loss), rel=1e-5)
    assert (example.targets[seen.sum(1).argmin()] == END).sum() == 1


def test_exact_match_is_that_of_greedy_generation(tmp_path: Path) -> None:
    model = save_model(tmp_path, "T5ForConditionalGeneration")
    rows = pairs(60)
    task = make_task(tmp_path, "text-to-text", dataset=write_rows(tmp_path / "a.jsonl", rows))
    prepared = task.encode([row["source"] for row in rows])  # type: ignore[attr-defined]
    told = model.generate(**prepared, do_sample=False, num_beams=1, max_new_tokens=9)[:, 1:]
    # Half of the targets are what the model tells, the others are not.
    targets = [tokens.tolist() for tokens in told]
    for row, tokens in enumerate(targets):
        tokens[:] = tokens[: tokens.index(END) + 1] if END in tokens else tokens
        if row % 2:
            tokens[len(tokens) // 2] = (tokens[len(tokens) // 2] + 1) % VOCABULARY
    mixed = [
        {"source": row["source"], "target": tokens, "part": i % 2}
        for i, (row, tokens) in enumerate(zip(rows, targets, strict=True))
    ]
    distinct = list({row["source"]: row for row in mixed}.values())
    data = write_rows(tmp_path / "b.jsonl", distinct)
    task, module = open_task(tmp_path, "text-to-text", dataset=data, evaluation_samples=20)
    chosen = task.rows("test").column("part", range(20))  # type: ignore[attr-defined]
    found = task.metrics(run_all(task, module).statistics)
    assert found["exact_match"] == pytest.approx(chosen.count(0) / 20)
    assert 0 < found["exact_match"] < 1


def test_a_prefix_stands_before_every_source(tmp_path: Path) -> None:
    save_model(tmp_path, "T5ForConditionalGeneration")
    data = write_rows(tmp_path / "rows.jsonl", pairs(30))
    task = make_task(tmp_path, "text-to-text", dataset=data, preprocessing={"prefix": "undo b "})
    tokens = task.tokenizer.convert_ids_to_tokens(  # type: ignore[attr-defined]
        task.batches("test")[0]["input_ids"][0]
    )
    assert tokens[:3] == ["un", "##do", "b"]


def test_what_decoding_starts_from_must_be_known(tmp_path: Path) -> None:
    model = save_model(tmp_path, "T5ForConditionalGeneration")
    (tmp_path / "config.json").write_text("{}")
    data = write_rows(tmp_path / "rows.jsonl", pairs(30))
    with pytest.raises(CardError, match="decoder_start_token_id"):
        make_task(tmp_path, "text-to-text", dataset=data).examples("test")
    task = make_task(tmp_path, "text-to-text", dataset=data, preprocessing={"start_token": 5})
    assert (task.batches("test")[0]["decoder_input_ids"][:, 0] == 5).all()
    with pytest.raises(
        CardError, match=r"expects token scores \('logits' \[3, \d+, vocabulary\]\)"
    ):
        task.forward(model.encoder, {**task.batches("test")[0]})


def test_a_model_writes_windows_that_it_finds_likely(tmp_path: Path) -> None:
    module = save_model(tmp_path, "LlamaForCausalLM")
    task = documents_task(tmp_path, [[1, 2, 3, 4, 5], *([n] * 9 for n in range(5, 20))])
    first, again = [task.imagined(module, 50, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert first is not None
    assert again is not None
    assert max(len(batch["input_ids"]) for batch in first) <= task.batch_size
    written = torch.cat([batch["input_ids"] for batch in first])
    assert torch.equal(written, torch.cat([batch["input_ids"] for batch in again]))
    assert written.shape == (50, 4)
    assert written.dtype == torch.int64
    assert len(written[:, 0].unique()) > 5
    assert not bool((written[:, 1:] == END).any())  # it goes on to the window's end
    noise = torch.randint(VOCABULARY, written.shape, generator=torch.Generator().manual_seed(2))

    def loss(tokens: torch.Tensor) -> float:
        return float(task.loss(task.call(module, {"input_ids": tokens}), tokens))

    assert loss(written) < loss(noise) - 0.1


def test_a_module_that_is_not_of_transformers_writes_nothing(tmp_path: Path) -> None:
    task = documents_task(tmp_path, [[n] * 9 for n in range(5, 20)])
    assert task.imagined(torch.nn.Linear(2, 2), 5, torch.Generator()) is None
