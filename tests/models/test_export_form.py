"""Packed weights say which integers they are, and that agrees with what they compute."""

from __future__ import annotations

import pytest
import torch

from zoopress.exporters.integer_weights import use_integers
from zoopress.models.export_form import ExportForm
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.models.weights import as_matrix
from zoopress.plugins import load_plugins
from zoopress.testing import context_for, models as testing_models, seeded, tiny_card

PLUGINS = load_plugins()
TECHNIQUES = [
    ("weight_quantization", {"bits": 8, "symmetric": True}),
    ("weight_quantization", {"bits": 4, "symmetric": True}),
    ("weight_quantization", {"bits": 3, "symmetric": False, "group_size": 32}),
    ("rate_distortion_quantization", {"slope": 0.01, "sensitivity": "none", "steps": "row"}),
    ("rate_distortion_quantization", {"slope": 0.01, "sensitivity": "none", "steps": "column"}),
]


def packed_model(technique: str, options: dict[str, object], model: str, folder) -> Model:
    kind = PLUGINS.technique(technique)
    module = seeded(getattr(testing_models, model))
    made = Model(module, PLUGINS.layers)
    kind(kind.config_type(**options)).apply(made, context_for(tiny_card(model, folder), folder))
    return made


@pytest.mark.parametrize(("technique", "options"), TECHNIQUES)
def test_integers_and_scales_give_the_weight(technique, options, tmp_path) -> None:
    made = packed_model(technique, options, "cnn", tmp_path)
    forms = {name: packed.export_form() for name, packed in packed_weights(made.module).items()}
    assert any(forms.values())
    for name, packed in packed_weights(made.module).items():
        form = forms[name]
        if form is None:
            continue
        matrix = as_matrix(packed.dense(), packed.output_axis)
        torch.testing.assert_close(form.matrix(), matrix.float(), rtol=1e-6, atol=1e-7)
        assert not form.codes.is_floating_point()
        assert form.codes.unique().numel() <= 2**form.bits


@pytest.mark.parametrize("model", ["cnn", "lstm", "transformer"])
def test_a_model_of_integers_computes_what_the_dense_one_does(model: str, tmp_path) -> None:
    from zoopress.testing import tiny_artifact

    artifact = tiny_artifact(model, tmp_path, PLUGINS)
    call = artifact.call("it is compared")
    expected = call(artifact.dense)
    module = artifact.module
    assert use_integers(module) > 0
    assert not packed_weights(module)
    assert any(t.dtype == torch.int8 for t in module.state_dict().values())
    torch.testing.assert_close(call(module), expected)


CODES = torch.zeros(4, 6, dtype=torch.int8)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"codes": CODES.float(), "bits": 4, "scale": torch.ones(4, 1)}, "must be integers"),
        ({"codes": CODES, "bits": 9, "scale": torch.ones(4, 1)}, "cannot have 9 bits"),
        ({"codes": CODES, "bits": 4, "scale": torch.ones(4)}, r"scale must be float \[4, 1\]"),
        ({"codes": CODES, "bits": 4, "scale": CODES[:, :1]}, "not torch.int8"),
        (
            {"codes": CODES, "bits": 4, "scale": torch.ones(4, 1), "group_size": 4},
            r"scale must be float \[4, 2\]",
        ),
        (
            {"codes": CODES, "bits": 4, "scale": torch.ones(6), "axis": 1, "group_size": 2},
            "group_size of 2 needs axis 0",
        ),
        (
            {"codes": CODES, "bits": 4, "scale": torch.ones(1), "axis": None, "zero_point": CODES},
            r"zero_point must be torch.int8 \[1\]",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        ExportForm(**arguments)


def test_groups_spread_over_their_columns() -> None:
    codes = torch.arange(12, dtype=torch.uint8).view(2, 6)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    zero = torch.tensor([[1, 0], [0, 8]], dtype=torch.uint8)
    got = ExportForm(codes, 4, scale, zero, 0, group_size=4).matrix()
    expected = torch.tensor([[-1.0, 0, 1, 2, 8, 10], [18, 21, 24, 27, 8, 12]])
    assert torch.equal(got, expected)
