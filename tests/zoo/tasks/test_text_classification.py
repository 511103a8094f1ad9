"""Text and token classification: what is fed, and metrics recomputed by other means."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from seqeval.metrics import f1_score
from sklearn.metrics import accuracy_score, log_loss

from text_models import make_task, open_task, save_model, write_rows
from zoopress.errors import CardError, StageError
from zoopress.evaluation.fidelity import run_all
from zoopress.tasks import Split, Task
from zoopress.testing.models import lstm
from zoopress_zoo.tasks.text_task import run_module

LETTERS = "abcdefghijklmnop"


def reviews(count: int, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"text": " ".join(draw.choices(LETTERS, k=1 + i % 9)) + f" {LETTERS[i % 16]}" * (i // 16)}
        | {"label": labels[i % len(labels)]}
        for i in range(count)
    ]


def prepare(task: Task) -> None:
    """Do all that is done before a model is run."""
    for split in get_args(Split):
        task.samples(split)
    task.label_names()


def test_metrics_and_loss_are_those_of_the_models_own_probabilities(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForSequenceClassification", num_labels=3)
    rows = reviews(60, ("bad", "fair", "good"))
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task, module = open_task(
        tmp_path, "text-classification", dataset=data, evaluation_samples=20, batch_size=7
    )
    found = task.metrics(run_all(task, module).statistics)

    label = {row["text"]: row["label"] for row in rows}
    tokenizer = task.tokenizer  # type: ignore[attr-defined]
    texts = [task.show("test", row) for row in range(20)]
    with torch.inference_mode():  # one by one, so that nothing is padded
        probabilities = torch.cat(
            [
                module(**tokenizer(text, return_tensors="pt")).logits.double().softmax(1)
                for text in texts
            ]
        )
    names = ["bad", "fair", "good"]
    target = [names.index(label[str(text)]) for text in texts]
    predicted = probabilities.argmax(1).tolist()
    assert found["accuracy"] == accuracy_score(target, predicted)
    assert found["log_loss"] == pytest.approx(
        log_loss(target, probabilities.numpy(), labels=[0, 1, 2]), rel=1e-4
    )
    batch = task.samples("training").batch([0, 1, 2])
    loss = task.loss(task.forward(module, batch.inputs), batch.targets)
    theirs = module(**batch.inputs, labels=batch.targets).loss
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)


def test_labels_are_found_by_name_in_the_models_own_order(tmp_path: Path) -> None:
    save_model(
        tmp_path,
        "BertForSequenceClassification",
        id2label={0: "good", 1: "bad"},
        label2id={"good": 0, "bad": 1},
    )
    data = write_rows(tmp_path / "rows.jsonl", reviews(40, ("bad", "good")))
    task = make_task(tmp_path, "text-classification", dataset=data)
    assert list(task.label_names()) == ["good", "bad"]


def test_two_texts_are_told_apart(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForSequenceClassification", num_labels=2)
    rows = [{"premise": f"a {c}", "hypothesis": f"b {d}", "label": i % 2} for i, (c, d) in
            enumerate((c, d) for c in LETTERS for d in "ab")]  # fmt: skip
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task = make_task(tmp_path, "text-classification", dataset=data)
    inputs = task.batches("test")[0]
    assert inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert inputs["input_ids"].shape == (3, 7)


def test_a_module_of_ones_own_takes_lists_of_token_ids(tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = [
        {"tokens": [draw.randrange(1, 60) for _ in range(3 + i % 4)], "label": i % 10}
        for i in range(40)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task = make_task(
        tmp_path, "text-classification", dataset=data, columns={"text": "tokens"}, batch_size=4
    )
    batch = task.examples("test")[0]
    assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (4, 6)
    assert (batch.inputs["attention_mask"] == (batch.inputs["input_ids"] > 0)).all()
    torch.manual_seed(0)
    module = lstm()
    assert torch.equal(task.forward(module, batch.inputs), module(batch.inputs["input_ids"]))


class Named(torch.nn.Module):
    def forward(self, attention_mask: torch.Tensor, other: int = 2) -> torch.Tensor:
        return attention_mask * other


class Anything(torch.nn.Module):
    def forward(self, **inputs: torch.Tensor) -> list[str]:
        return list(inputs)


def test_a_module_gets_the_inputs_that_it_takes() -> None:
    inputs = {"input_ids": torch.ones(1), "attention_mask": torch.tensor([3])}
    assert run_module(Named(), inputs).tolist() == [6]
    assert run_module(Anything(), inputs) == ["input_ids", "attention_mask"]
    assert run_module(torch.nn.Sequential(torch.nn.Identity()), inputs).tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": " "}, r"row 5 of part 'all': the text is ' '; it must be text that is not empty"),
        ({"text": None}, r"row 5 .*the text is None"),
        ({"label": "awful"}, r"label 'awful' \(row 5 of part 'all'\) is none of the 3 classes"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_before_any_work(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(tmp_path, "BertForSequenceClassification", num_labels=3)
    rows = reviews(12, ("bad", "fair", "good"))
    rows[5] |= change
    data = write_rows(tmp_path / "rows.jsonl", rows)
    names = ["bad", "fair", "good"]
    task = make_task(tmp_path, "text-classification", dataset=data, label_names=names)
    with pytest.raises(CardError, match=message):
        prepare(task)


def test_a_model_without_a_classifier_is_refused_with_what_it_returns(tmp_path: Path) -> None:
    save_model(tmp_path, "BertModel")
    data = write_rows(tmp_path / "rows.jsonl", reviews(12, ("bad", "good")))
    task, module = open_task(tmp_path, "text-classification", dataset=data)
    with pytest.raises(
        CardError,
        match=r"expects class scores .*got BaseModelOut\w* with last_hidden_state \[3, \d+, 16\]",
    ):
        run_all(task, module)


def test_a_model_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForSequenceClassification", num_labels=2)
    data = write_rows(tmp_path / "rows.jsonl", reviews(12, ("bad", "fair", "good")))
    task, module = open_task(tmp_path, "text-classification", dataset=data)
    with pytest.raises(CardError, match=r"3 classes .*bad, fair, good.*got \[3, 2\]"):
        run_all(task, module)


# Token classification

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def tagged(count: int, tags: tuple[str, ...] = TAGS) -> list[dict[str, Any]]:
    draw = random.Random(0)
    words = (*LETTERS, "playing", "undo", "plays")
    rows = []
    for _ in range(count):
        length = draw.randrange(2, 9)
        rows.append(
            {"tokens": draw.choices(words, k=length)} | {"tags": draw.choices(tags, k=length)}
        )
    return rows


def test_only_the_first_piece_of_a_word_has_its_tag(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForTokenClassification", num_labels=5)
    rows = [
        {"tokens": ["undo", letter, "plays", "b"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]}
        for letter in LETTERS
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task = make_task(tmp_path, "token-classification", dataset=data, label_names=TAGS)
    batch = task.examples("test")[0]
    tokens = task.tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0])  # type: ignore[attr-defined]
    assert [*tokens[:3], *tokens[4:]] == ["[CLS]", "un", "##do", "play", "##s", "b", "[SEP]"]
    assert batch.targets[0].tolist() == [-100, 1, -100, 2, 0, -100, 3, -100]


def test_f1_is_seqevals_on_the_words_predicted_tags(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForTokenClassification", num_labels=5)
    rows = tagged(80)
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task, module = open_task(
        tmp_path, "token-classification", dataset=data, label_names=TAGS, evaluation_samples=40
    )
    found = task.metrics(run_all(task, module).statistics)

    tags = {" ".join(row["tokens"]): row["tags"] for row in rows}
    predicted, target = [], []
    for row in range(40):
        words = str(task.show("test", row)).split()
        tokens = task.tokenizer([words], is_split_into_words=True, return_tensors="pt")  # type: ignore[attr-defined]
        with torch.inference_mode():
            scores = module(**tokens).logits[0].argmax(1)
        first = [tokens.word_ids(0).index(word) for word in range(len(words))]
        predicted.append([TAGS[int(scores[place])] for place in first])
        target.append(tags[" ".join(words)])
    assert found["f1"] == pytest.approx(f1_score(target, predicted))
    assert 0 < found["f1"] < 1
    right = sum(
        p == t
        for ps, ts in zip(predicted, target, strict=True)
        for p, t in zip(ps, ts, strict=True)
    )
    assert found["token_accuracy"] == pytest.approx(right / sum(map(len, target)))


def test_tags_that_are_no_entities_are_judged_by_tokens(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForTokenClassification", num_labels=3)
    data = write_rows(tmp_path / "rows.jsonl", tagged(30, ("NOUN", "VERB", "X")))
    task, module = open_task(tmp_path, "token-classification", dataset=data)
    found = task.metrics(run_all(task, module).statistics)
    assert found["f1"] == found["token_accuracy"]
    assert "precision" not in found


def test_words_without_a_tag_change_nothing(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForTokenClassification", num_labels=2)
    rows = [
        {"words": [1 + i % 8, 9, 10 + i // 8], "tags": [i % 2, -100, 1 - i % 2]} for i in range(32)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task, module = open_task(tmp_path, "token-classification", dataset=data)
    rows_of = run_all(task, module).statistics
    assert rows_of["tokens"].tolist() == [2] * 4
    batch = task.samples("training").batch([0, 1])
    scores = task.forward(module, batch.inputs)
    theirs = module(**batch.inputs, labels=batch.targets).loss
    assert float(task.loss(scores, batch.targets).detach()) == pytest.approx(float(theirs.detach()))
    assert math.isclose(
        float(rows_of["nll"].sum() / rows_of["tokens"].sum()),
        task.metrics(rows_of)["log_loss"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["O"]}, r"row 3 of part 'all': 2 words have the tags \['O'\]; there must be one"),
        ({"tokens": "a b"}, r"row 3 of part 'all': the words are 'a b'; they must be a list"),
        ({"tokens": [], "tags": []}, r"row 3 of part 'all': the words is \[\]"),
        ({"tags": ["O", "B-ORG"]}, r"label 'B-ORG' \(row 3 of part 'all'\)"),
    ],
)
def test_words_and_tags_that_do_not_fit_are_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(tmp_path, "BertForTokenClassification", num_labels=5)
    rows: list[dict[str, Any]] = [{"tokens": ["a", c], "tags": ["O", "O"]} for c in LETTERS]
    rows[3] |= change
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task = make_task(tmp_path, "token-classification", dataset=data, label_names=TAGS)
    with pytest.raises(CardError, match=message):
        prepare(task)


def test_a_model_that_fails_on_the_tokens_says_so(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForTokenClassification", num_labels=5)
    rows = [{"words": [1, 90 + i], "tags": ["O", "O"]} for i in range(12)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task, module = open_task(tmp_path, "token-classification", dataset=data, label_names=TAGS)
    with pytest.raises(StageError, match=r"the card's 'data' does not fit the model"):
        run_all(task, module)


def test_rewritten_text_is_fed_with_the_targets_as_they_are(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForSequenceClassification", num_labels=2)
    data = write_rows(tmp_path / "rows.jsonl", reviews(40, ("bad", "good")))
    task = make_task(tmp_path, "text-classification", dataset=data)
    clean, same = task.samples("test").batch([2, 0]), task.rewritten("test", [2, 0], str)
    other = task.rewritten("test", [2, 0], lambda text: "a")
    assert same is not None
    assert other is not None
    assert torch.equal(same.inputs["input_ids"], clean.inputs["input_ids"])
    assert torch.equal(other.targets, clean.targets)
    expected = task.tokenizer("a", return_tensors="pt")["input_ids"]  # type: ignore[attr-defined]
    assert torch.equal(other.inputs["input_ids"], expected.expand(2, -1))


def test_token_ids_cannot_be_rewritten(tmp_path: Path) -> None:
    rows = [{"tokens": [1 + i, 2], "label": i % 2} for i in range(40)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    columns = {"text": "tokens"}
    task = make_task(tmp_path, "text-classification", dataset=data, columns=columns)
    assert task.rewritten("test", [0], str.upper) is None
