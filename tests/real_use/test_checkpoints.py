"""Checkpoints as training leaves them: wrapped, prefixed, beside an optimizer's state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from real_use_case import Case, MakeCase, call, error
from zoopress.cards import load_card
from zoopress.cells.cell import open_cell, open_original
from zoopress.errors import ZoopressError
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 64)
        self.n = nn.BatchNorm1d(64)
        self.b = nn.Linear(64, 16)
        self.register_buffer("table", torch.linspace(0, 1, 64))
        self.register_buffer("mask", torch.arange(64) % 2 == 0, persistent=False)

    def forward(self, x):
        return self.b(torch.relu(self.n(self.a(x))) * self.mask + self.table)


def prepare(model):
    model.n.running_mean.fill_(0.25)


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
"""
State = dict[str, Any]


def prefixed(start: str) -> Callable[[nn.Module], State]:
    return lambda m: {start + name: tensor for name, tensor in m.state_dict().items()}


def changed(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def within(model: nn.Module, mark: str) -> State:
    """A wrapper's name between others, as where a part of a model was wrapped."""
    return {n.replace("a.", f"a.{mark}."): t for n, t in model.state_dict().items()}


def trained(key: str) -> Callable[[nn.Module], State]:
    def save(model: nn.Module) -> State:
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(4, 32)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state = {"epoch": 3, "optimizer": optimizer.state_dict(), "best": 0.5, "args": {"lr": 1e-3}}
        return {key: model.state_dict(), **state}

    return save


def lightning(model: nn.Module) -> State:
    state = {f"model.{n}": t for n, t in model.state_dict().items()}
    state["criterion.weight"] = torch.ones(16)
    return {"state_dict": state, "epoch": 1, "pytorch-lightning_version": "2.0", "callbacks": {}}


def averaged(model: nn.Module) -> State:
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


def moments_by_name(model: nn.Module) -> State:
    state = model.state_dict()
    return {"model": state, "optim": {"exp_avg": changed(state)}}


def nested(model: nn.Module) -> State:
    parts: State = {}
    for name, tensor in model.state_dict().items():
        first, _, rest = name.partition(".")
        if rest:
            parts.setdefault(first, {})[rest] = tensor
        else:
            parts[first] = tensor
    return {"net": parts}


def without_table(model: nn.Module) -> State:
    return {n: t for n, t in model.state_dict().items() if n != "table"}


def with_mask(model: nn.Module) -> State:
    return {**model.state_dict(), "mask": torch.arange(64) % 2 == 0}


def twice_the_same(model: nn.Module) -> State:
    return {"model": model.state_dict(), "ema": model.state_dict()}


def of_parameters(model: nn.Module) -> State:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


FITTING: dict[str, Callable[[nn.Module], State]] = {
    **{
        start: prefixed(start)
        for start in (
            *("_orig_mod.", "module.", "model.", "net.", "_orig_mod.module.", "module._orig_mod."),
            *("model._orig_mod.", "module.model.", "encoder.net.", "_fsdp_wrapped_module."),
        )
    },
    **{f"a {mark}": lambda m, mark=mark: within(m, mark) for mark in ("module", "_orig_mod")},
    **{
        key: trained(key)
        for key in ("state_dict", "model", "model_state_dict", "weights", "ema", "net", "params")
    },
    "lightning": lightning,
    "averaged": averaged,
    "moments by name": moments_by_name,
    "nested": nested,
    "a table that is made anew": without_table,
    "a buffer that is no longer saved": with_mask,
    "twice the same": twice_the_same,
    "parameters": of_parameters,
}


def opened(it: Case, **card: Any) -> nn.Module:
    """The original as a run opens it."""
    file = f"{it.module.__name__}.py"
    inputs = {"inputs": f"{file}:inputs"}
    made = {"name": "case", "source": "path:weights.pt", "factory": f"{file}:build", "data": inputs}
    (it.folder / "card.yaml").write_text(yaml.safe_dump(made | card))
    plugins = load_plugins()
    return open_original(load_card(str(it.folder / "card.yaml"), plugins), plugins).model.load()


def fits(it: Case, **card: Any) -> bool:
    x = it.module.inputs()[:8]
    return error(call(it.model, x), call(opened(it, **card), x)) == 0.0


@pytest.mark.parametrize("how", FITTING)
def test_a_models_part_of_a_checkpoint_is_found(case: MakeCase, how: str) -> None:
    assert fits(case(NET, FITTING[how]))


def test_a_checkpoint_of_what_the_factory_wraps_fits(case: MakeCase) -> None:
    source = NET.replace("return Net()", "return nn.DataParallel(Net())").replace(
        "model.n.", "model.module.n."
    )
    it = case(source, lambda m: m.module.state_dict())
    assert fits(it)
    wrapped = NET.replace(
        "def build():\n    return Net()",
        "class Whole(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.model = Net()\n\n    def forward(self, x):\n"
        "        return self.model(x)\n\n\n"
        "def build():\n    return Whole()",
    ).replace("model.n.", "model.model.n.")
    assert fits(case(wrapped, lambda m: m.model.state_dict()))


def test_a_model_with_a_part_called_module_keeps_its_names(case: MakeCase) -> None:
    source = NET.replace("self.a", "self.module")
    assert fits(case(source))
    assert fits(case(source, prefixed("module.")))


def ema(model: nn.Module) -> State:
    return {"model": changed(model.state_dict()), "ema": model.state_dict()}


def online(model: nn.Module) -> State:
    state = model.state_dict()
    return {
        **{f"online_model.{n}": t for n, t in changed(state).items()},
        **{f"ema_model.module.{n}": t for n, t in state.items()},
        "step": torch.tensor(3),
    }


def own_and_average(model: nn.Module) -> State:
    return {**changed(model.state_dict()), "ema": model.state_dict()}


@pytest.mark.parametrize(
    ("save", "key"), [(ema, "ema"), (online, "ema_model"), (own_and_average, "ema")]
)
def test_a_model_that_is_there_twice_is_refused_until_the_card_says_which(
    case: MakeCase, save: Callable[[nn.Module], State], key: str
) -> None:
    it = case(NET, save)
    with pytest.raises(ZoopressError, match=f"holds the model 2 times.*'checkpoint_key: {key}'"):
        opened(it)
    assert fits(it, checkpoint_key=key)
    with pytest.raises(ZoopressError, match="nothing below 'checkpoint_key: emma'"):
        opened(it, checkpoint_key="emma")


def test_which_part_of_a_checkpoint_was_taken_is_in_the_key(case: MakeCase) -> None:
    it = case(NET, ema)
    keys = set()
    for key in ("ema", "model"):
        opened(it, checkpoint_key=key)
        plugins = load_plugins()
        card = load_card(str(it.folder / "card.yaml"), plugins)
        (it.folder / "recipe.yaml").write_text("name: r\nstages: [{technique: entropy_coding}]\n")
        recipe = load_recipe(str(it.folder / "recipe.yaml"), plugins)
        keys.add(open_cell(card, recipe, Store(it.folder / "store"), plugins).source_key)
    assert len(keys) == 2


def test_a_checkpoint_of_a_trainer_goes_through_a_run(case: MakeCase) -> None:
    it = case(NET, lightning)
    x = it.module.inputs()[:8]
    result = it.compress({"technique": "entropy_coding"})
    assert error(call(it.model, x), call(it.load(result), x)) == 0.0


def without(name: str) -> Callable[[nn.Module], State]:
    return lambda m: {n: t for n, t in m.state_dict().items() if n != name}


def stray(model: nn.Module) -> State:
    return {**model.state_dict(), "total_ops": torch.ones(1)}


def other_mask(model: nn.Module) -> State:
    return {**model.state_dict(), "mask": torch.ones(64, dtype=torch.bool)}


def wrong_shape(model: nn.Module) -> State:
    return {**model.state_dict(), "a.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (without("n.running_mean"), 'Missing key.* "n.running_mean"'),
        (without("a.weight"), 'Missing key.* "a.weight"'),
        (stray, 'Unexpected key.* "total_ops"'),
        (other_mask, 'Unexpected key.* "mask"'),
        (wrong_shape, "size mismatch for a.weight"),
        (lambda m: {"epoch": 3}, "is not a state dict"),
        (lambda m: [1, 2], "is not a state dict"),
        (lambda m: {"hyper": Path("x"), **m.state_dict()}, "could run code"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    case: MakeCase, save: Callable[[nn.Module], State], words: str
) -> None:
    with pytest.raises(ZoopressError, match=words):
        opened(case(NET, save))


def test_a_random_buffer_is_not_made_anew(case: MakeCase) -> None:
    source = NET.replace("torch.linspace(0, 1, 64)", "torch.randn(64)")
    with pytest.raises(ZoopressError, match=r'Missing key.* "table"'):
        opened(case(source, without_table))


def test_state_besides_tensors_comes_along_through_every_stage(case: MakeCase) -> None:
    for kind, back in (
        ("torch.tensor(self.k)", "state"),
        ('{"k": self.k, "s": (1, "x")}', 's["k"]'),
    ):
        it = case(f"""
class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = 1.0

    def get_extra_state(self):
        return {kind}

    def set_extra_state(self, state):
        s = state
        self.k = float({back})

    def forward(self, x):
        return x * self.k


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = Scale()
        self.a = nn.Linear(32, 64)
        self.b = nn.Linear(64, 16)

    def forward(self, x):
        return self.b(torch.relu(self.a(self.s(x))))


def build():
    return Net()


def prepare(model):
    model.s.k = 5.0


def inputs():
    return torch.randn(64, 32, generator=g())
""")
        result = it.compress({"technique": "float_precision"}, {"technique": "entropy_coding"})
        found: Any = it.load(result)
        assert found.s.k == 5.0
        x: Tensor = it.module.inputs()[:8]
        assert error(call(it.model, x), call(found, x).float()) < 0.02


def test_state_that_is_no_plain_data_is_refused_by_name(case: MakeCase) -> None:
    it = case(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 64)

    def get_extra_state(self):
        return {"when": {1, 2}}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return self.a(x)


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
""",
        lambda m: (
            {n: t for n, t in m.state_dict().items() if "extra" not in n} | {"_extra_state": {}}
        ),
    )
    with pytest.raises(ZoopressError, match=r"\(Net\) keeps an extra state that holds a set"):
        it.compress({"technique": "entropy_coding"})
