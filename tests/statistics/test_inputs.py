"""What reads each weight, and with which inputs and outputs, against computation by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statistics_models import InputsTask, normal, seeded_model, service
from zoopress.errors import StageError
from zoopress.models.model import Model


def moments(model: Model, batches: list[Any], weight: str) -> Tensor:
    return service(batches).of(model, "input_second_moments", [weight])[weight].value


def test_all_statistics_of_a_linear_layer() -> None:
    model = seeded_model(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    batches = [normal(6, 5), normal(3, 5, seed=2)]
    names = [
        "input_norms", "input_means", "input_ranges", "input_second_moments", "output_norms",
        "output_means", "output_variances", "output_ranges", "output_second_moments",
        "output_zeros",
    ]  # fmt: skip
    (
        norms,
        means,
        ranges,
        seconds,
        out_norms,
        out_means,
        variances,
        out_ranges,
        out_seconds,
        zeros,
    ) = service(batches).measure(model, names)
    with torch.no_grad():
        x = model.module[:2](torch.cat(batches))  # type: ignore[index]
        y = model.module[2](x)  # type: ignore[index]
    assert norms.seen("2.weight") == 9
    torch.testing.assert_close(norms["2.weight"].value, x.norm(dim=0))
    torch.testing.assert_close(means["2.weight"].value, x.mean(0))
    torch.testing.assert_close(ranges["2.weight"]["low"], x.amin(0))
    torch.testing.assert_close(ranges["2.weight"]["high"], x.amax(0))
    torch.testing.assert_close(seconds["2.weight"].value, x.T @ x / 9)
    torch.testing.assert_close(out_norms["2.weight"].value, y.norm(dim=0))
    torch.testing.assert_close(out_means["2.weight"].value, y.mean(0))
    torch.testing.assert_close(variances["2.weight"].value, y.var(0, correction=0))
    torch.testing.assert_close(out_ranges["2.weight"]["low"], y.amin(0))
    torch.testing.assert_close(out_seconds["2.weight"].value, y.T @ y / 9)
    before = model.module[0](torch.cat(batches))  # type: ignore[index]
    torch.testing.assert_close(zeros["0.weight"]["not_positive"], (before <= 0).float().mean(0))
    assert bool((zeros["0.weight"]["zero"] == 0).all())
    torch.testing.assert_close(norms["2.weight"].spread(), x.norm(dim=0).expand(3, 4))
    torch.testing.assert_close(out_norms["2.weight"].spread(), y.norm(dim=0)[:, None].expand(3, 4))


@pytest.mark.parametrize("measure", ["cosine", "correlation"])
def test_similarity_of_units(measure: Any) -> None:
    from zoopress.statistics.named.second_moments import UnitSimilarity

    model = seeded_model(nn.Sequential(nn.Linear(5, 4)))
    with torch.no_grad():
        model.module[0].weight[3] = 0  # type: ignore[index]
        model.module[0].bias[3] = 0  # type: ignore[index]
    batches = [normal(9, 5) + 2]
    found = service(batches).of(model, UnitSimilarity(measure))["0.weight"].value
    y = model.module(batches[0]).detach()[:, :3]
    centred = y - y.mean(0) if measure == "correlation" else y
    unit = centred / centred.norm(dim=0)
    torch.testing.assert_close(found[:3, :3], unit.T @ unit)
    assert bool(found[3].isnan().all())


def test_units_that_never_move_are_like_none_by_correlation() -> None:
    from zoopress.statistics.named.second_moments import UnitSimilarity

    model = seeded_model(nn.Sequential(nn.Linear(5, 3)))
    with torch.no_grad():
        model.module[0].weight[1] = 0  # type: ignore[index]
    found = service([normal(50, 5)]).of(model, UnitSimilarity("correlation"))["0.weight"].value
    assert bool(found[1].isnan().all())
    assert bool(found[0, 2].isfinite())


def test_histograms_are_exact_and_grow() -> None:
    from zoopress.statistics.named.histograms import InputHistogram, OutputHistogram

    model = seeded_model(nn.Sequential(nn.Linear(4, 3)))
    batches = [normal(9, 4) * 0.1, torch.zeros(2, 4), normal(9, 4, seed=3) * 37]
    inputs, outputs = service(batches).measure(model, [InputHistogram(64), OutputHistogram(64)])
    for found, values in (
        (inputs["0"], torch.cat(batches)),
        (outputs["0"], model.module(torch.cat(batches)).detach()),
    ):
        counts, edges = found["counts"], found["edges"]
        expected, _ = torch.histogram(values.double().flatten(), edges)
        torch.testing.assert_close(counts.double(), expected)
        assert counts.sum() == values.numel()
        assert values.abs().max() < edges[-1] <= 2 * values.abs().max()
    backwards = service(batches[::-1]).of(model, InputHistogram(64))["0"]
    assert torch.equal(backwards["counts"], inputs["0"]["counts"])


def test_numbers_without_a_bin_are_told() -> None:
    model = seeded_model(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(StageError, match=r"input_histogram of '0.weight'.*NaN or infinite"):
        service([torch.full((2, 4), torch.inf)]).of(model, "input_histogram")


CONVOLUTIONS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
    (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 4, 7, 6)),
    (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2, bias=False), (2, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 8, 3, padding="same", groups=4, bias=False), (3, 4, 5, 5)),
    (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), (2, 4, 5, 5)),
    (lambda: nn.Conv3d(2, 4, 2, stride=2, groups=2, bias=False), (2, 2, 4, 5, 4)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 5)),
    (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, bias=False),
        (2, 4, 5, 4),
    ),
    (lambda: nn.ConvTranspose2d(4, 4, (2, 3), dilation=2, bias=False), (2, 4, 3, 4)),
]


@pytest.mark.parametrize(("build", "shape"), CONVOLUTIONS)
def test_inputs_of_convolutions_give_their_outputs(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """Weights' matrices times unfolded rows are what the layer computes, whatever its arguments."""
    from zoopress.statistics.statistic import Seen, Sizes, State, Statistic

    rows: list[Tensor] = []

    class Rows(Statistic):
        name = "rows"
        needs = frozenset({"inputs"})

        def start(self, sizes: Sizes) -> State:
            return {"none": torch.zeros(sizes.groups, sizes.inputs)}

        def update(self, state: State, seen: Seen) -> None:
            assert seen.inputs is not None
            rows.append(seen.inputs.clone())

        def result(self, state: State, counts: Any) -> dict[str, Tensor]:
            return {"value": state["none"]}

    model = seeded_model(build())
    data = normal(*shape)
    layer = service([data]).of(model, Rows())["weight"]
    (unfolded,) = rows
    part = layer.parts[0]
    flat = model.module.weight.detach().flatten()  # type: ignore[union-attr, operator]
    factor = flat[part.inputs[:, :, None] + part.outputs[:, None, :]]  # [groups, k, n]
    outputs = model.module(data).detach()
    made = (unfolded @ factor).permute(1, 0, 2).flatten(1)  # [rows, out]
    torch.testing.assert_close(made, outputs.movedim(1, -1).reshape(-1, outputs.shape[1]))
    assert layer.seen == len(made)
    assert bool((layer.reached == len(made)).all())


def test_a_grouped_convolution_has_inputs_for_each_group() -> None:
    model = seeded_model(nn.Conv2d(4, 6, 3, stride=2, groups=2))
    data = normal(3, 4, 7, 7)
    found = service([data]).of(model, "input_norms")["weight"]
    patches = F.unfold(data, 3, stride=2).movedim(1, 2).reshape(-1, 2, 18)
    torch.testing.assert_close(found.value, patches.square().sum(0).sqrt())
    spread = found.spread()
    assert spread.shape == next(model.weights()).matrix().shape
    torch.testing.assert_close(spread[5], found.value[1])
    torch.testing.assert_close(spread[0], found.value[0])


class Recurrent(InputsTask):
    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        output: Tensor = module(inputs)[0]
        return output


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_exact(kind: type[nn.RNNBase]) -> None:
    model = seeded_model(kind(4, 3, num_layers=2, batch_first=True, bidirectional=True))  # type: ignore[arg-type]
    data = normal(2, 5, 4)
    asked = service([data])
    task = Recurrent([data])
    asked.task, asked.call = task, task.call
    found = asked.of(model, "input_second_moments")
    x = data.reshape(-1, 4)
    torch.testing.assert_close(found["weight_ih_l0"].value, x.T @ x / 10)
    # The states before each step: 0, then what the first layer, run by itself, gave.
    first = kind(4, 3, batch_first=True)  # type: ignore[arg-type]
    names = [name for name, _ in first.named_parameters()]
    parameters = dict(model.module.named_parameters())
    first.load_state_dict({name: parameters[name] for name in names})
    with torch.no_grad():
        states, _ = first(data)
    before = torch.cat([torch.zeros(2, 1, 3), states[:, :-1]], 1).reshape(-1, 3)
    torch.testing.assert_close(found["weight_hh_l0"].value, before.T @ before / 10)
    backward = kind(4, 3, batch_first=True)  # type: ignore[arg-type]
    backward.load_state_dict({name: parameters[f"{name}_reverse"] for name in names})
    with torch.no_grad():
        back, _ = backward(data.flip(1))
    both = torch.cat([states, back.flip(1)], 2).reshape(-1, 6)
    torch.testing.assert_close(found["weight_ih_l1"].value, both.T @ both / 10)
    assert torch.backends.mkldnn.is_available() == torch._C._get_mkldnn_enabled()


def test_recurrent_layers_with_projections_and_packed_sequences() -> None:
    model = seeded_model(nn.LSTM(4, 3, proj_size=2, batch_first=True))
    data = normal(2, 5, 4)

    class Packed(InputsTask):
        def forward(self, module: nn.Module, inputs: Any) -> Tensor:
            lengths = torch.tensor([5, 3])
            sequence = nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True)
            output: Tensor = module(sequence)[0].data
            return output

    asked, task = service([data]), Packed([data])
    asked.call = task.call
    found = asked.of(model, "input_norms")
    x = torch.cat([data[0], data[1, :3]])
    torch.testing.assert_close(found["weight_ih_l0"].value, x.norm(dim=0))
    assert found.seen("weight_hr_l0") == 8
    assert found["weight_hh_l0"].value.shape == (2,)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_within_the_fast_path_are_seen(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model = seeded_model(layer)
    data = normal(2, 5, 8)
    found = service([data]).of(model, "input_second_moments")
    assert torch.backends.mha.get_fastpath_enabled()
    assert set(found) == {
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    }  # fmt: skip
    with torch.no_grad():
        x = layer.norm1(data) if norm_first else data
        if norm_first:
            after = data + layer.self_attn(x, x, x)[0]
            inside = layer.norm2(after)
        else:
            inside = layer.norm1(data + layer.self_attn(x, x, x)[0])
        hidden = layer.linear1(inside).relu().reshape(-1, 12)
    x, inside = x.reshape(-1, 8), inside.reshape(-1, 8)
    torch.testing.assert_close(found["self_attn.in_proj_weight"].value, x.T @ x / 10)
    torch.testing.assert_close(found["linear1.weight"].value, inside.T @ inside / 10)
    torch.testing.assert_close(found["linear2.weight"].value, hidden.T @ hidden / 10)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        output: Tensor = self.attention(inputs[0], inputs[1], inputs[1], need_weights=False)[0]
        return output


def test_attention_to_something_else_reads_its_projection_in_two_ways() -> None:
    model = seeded_model(Attend())
    queries, keys = normal(2, 3, 8), normal(2, 5, 8, seed=4)
    found = service([(queries, keys)]).of(model, "input_norms")["attention.in_proj_weight"]
    assert [part.rows for part in found.parts] == [6, 10]
    spread = found.spread()
    torch.testing.assert_close(spread[0], queries.reshape(-1, 8).norm(dim=0))
    torch.testing.assert_close(spread[8], keys.reshape(-1, 8).norm(dim=0))
    torch.testing.assert_close(spread[23], keys.reshape(-1, 8).norm(dim=0))
    with pytest.raises(StageError, match=r"is read in 2 ways.*`spread`"):
        _ = found.value


class Functional(nn.Module):
    """Reads its weights in the ways that modules written by hand do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 5))
        self.kernel = nn.Parameter(torch.zeros(5, 3))
        self.experts = nn.Parameter(torch.zeros(3, 4, 2))
        self.scale = nn.Parameter(torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.weight)
        other = torch.einsum("...i,io->...o", x, self.kernel)
        halves = torch.bmm(hidden.expand(3, *hidden.shape).flatten(1, -2), self.experts)
        half = x.double() @ self.weight.double().T  # a copy in another type
        return other.sum() + halves.sum() + half.sum() + (self.scale * 2).sum() + x


def test_weights_read_by_functions() -> None:
    model = seeded_model(Functional())
    data = normal(6, 5)
    found = service([data]).of(model, "input_second_moments")
    twice = torch.cat([data, data])
    torch.testing.assert_close(found["weight"].value, twice.T @ twice / 12)
    assert found.seen("weight") == 12
    hidden = F.linear(data, model.module.weight).detach()  # type: ignore[arg-type]
    torch.testing.assert_close(found["kernel"].value, data.T @ data / 6)
    assert found["experts"].value.shape == (3, 4, 4)
    torch.testing.assert_close(found["experts"].value[1], hidden.T @ hidden / 6)
    # The kernel is stored [in, out]: its matrix has the inputs along its rows.
    norms = service([data]).of(model, "input_norms")["kernel"]
    torch.testing.assert_close(norms.spread(), data.norm(dim=0)[:, None].expand(5, 3))
    assert found.get("scale") is None
    with pytest.raises(StageError, match=r"'scale': it multiplies no data, but is read by sum"):
        found["scale"]


def test_attention_by_function_with_custom_projections() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
            return F.scaled_dot_product_attention(q, k, v)

    model = seeded_model(Attention())
    data = normal(2, 5, 8)
    outputs = service([data]).of(model, "output_means")["qkv"].value
    torch.testing.assert_close(outputs, model.module.qkv(data).detach().mean((0, 1)))  # type: ignore[union-attr, operator]


def test_outputs_hold_the_bias_whatever_the_inputs_layout() -> None:
    model = seeded_model(nn.Linear(5, 4))
    data = normal(5, 3, 2).permute(2, 1, 0)  # not contiguous: torch adds the bias apart
    found = service([data]).of(model, "output_means")["weight"].value
    torch.testing.assert_close(found, model.module(data).detach().mean((0, 1)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.layer(x))
        return result


def test_a_module_that_is_called_twice_adds_both_up() -> None:
    model = seeded_model(Twice())
    data = normal(4, 5)
    found = service([data]).of(model, "input_norms")["layer"]
    both = torch.cat([data, model.module.layer(data).detach()])  # type: ignore[union-attr, operator]
    assert found.seen == 8
    torch.testing.assert_close(found.value, both.norm(dim=0))


class Tied(nn.Module):
    """Word embeddings that are the output layer, too, and a decoder that is an encoder's turn."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.encoder = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        inside = self.encoder(self.embedding(tokens)) @ self.encoder.weight
        result: Tensor = self.head(inside)
        return result


def test_tied_weights_are_read_in_each_place() -> None:
    model = seeded_model(Tied())
    tokens = torch.tensor([[0, 3, 3], [6, 0, 3]])
    found = service([tokens]).of(model, "input_norms")
    assert found["head.weight"] is found["embedding.weight"] or (
        found["head.weight"].name == "embedding.weight"
    )
    table = model.module.embedding.weight.detach()  # type: ignore[union-attr]
    weight = model.module.encoder.weight.detach()  # type: ignore[union-attr]
    x = table[tokens.flatten()]  # type: ignore[index]
    code = x @ weight.T  # type: ignore[operator]
    expected = (x.square().sum(0)[None] + code.square().sum(0)[:, None]).sqrt()
    torch.testing.assert_close(found["encoder"].spread(), expected)
    counts = torch.tensor([2.0, 0, 0, 3, 0, 0, 1])[:, None]
    inside = code @ weight
    expected = (counts + inside.square().sum(0)[None]).sqrt()
    torch.testing.assert_close(found["embedding.weight"].spread(), expected)


def test_embeddings_count_tokens() -> None:
    model = seeded_model(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)))
    tokens = torch.tensor([[0, 3, 3], [6, 0, 3]])
    norms, seconds, means = service([tokens]).measure(
        model, ["input_norms", "input_second_moments", "input_means"]
    )
    counts = torch.tensor([2.0, 0, 0, 3, 0, 0, 1])
    torch.testing.assert_close(norms["0"].value, counts.sqrt())
    torch.testing.assert_close(seconds["0"].value, counts.diag() / 6)
    torch.testing.assert_close(means["0"].value, counts / 6)
    assert torch.equal(norms["0"].reached, counts.long()[:, None].expand(7, 4))
    with pytest.raises(StageError, match=r"reached 16 of its 28 numbers.*unseen=…"):
        norms["0"].spread()
    torch.testing.assert_close(
        norms["0"].spread(unseen=-1.0)[:, 0], torch.where(counts > 0, counts.sqrt(), -1.0)
    )
    ranges = service([tokens]).of(model, "input_ranges")
    with pytest.raises(StageError, match=r"'0.weight': its rows are looked up"):
        ranges["0"]
    assert ranges.get("0") is None
    assert ranges.seen("0") == 0
    assert ranges.seen("1") == 6


def test_bags_of_embeddings_and_rows_by_index() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(7, 4, mode="sum")
            self.table = nn.Parameter(torch.zeros(7, 4))

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.bag(tokens) + self.table[tokens[:, 0] - 7]
            return result

    found = service([torch.tensor([[0, 3], [3, 3]])]).of(seeded_model(Bags()), "input_norms")
    torch.testing.assert_close(found["bag"].value, torch.tensor([1.0, 0, 0, 3, 0, 0, 0]).sqrt())
    torch.testing.assert_close(found["table"].value, torch.tensor([1.0, 0, 0, 1, 0, 0, 0]))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.stacked = nn.Parameter(torch.zeros(3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        route = (x[:, 0] > 0).long()
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = x[route == number]
            result[route == number] = expert(mine) + mine @ self.stacked[number]
        return result


def test_an_expert_that_was_never_asked_is_known_as_not_seen() -> None:
    model = seeded_model(Experts())
    data = normal(8, 4)
    norms, gradients = service([data]).measure(model, ["input_norms", "gradients"])
    one = data[data[:, 0] > 0]
    for found in (norms, gradients):
        assert found.seen("experts.1.weight") == len(one)
        assert found.seen("experts.2.weight") == 0
        assert found.get("experts.2.weight") is None
        with pytest.raises(StageError, match=r"experts.2.weight.*reached it.*calibration_samples"):
            found["experts.2.weight"]
    torch.testing.assert_close(norms["experts.1"].value, one.norm(dim=0))
    stacked = norms["stacked"]
    assert stacked.reached.reshape(3, 16)[:, 0].tolist() == [8 - len(one), len(one), 0]
    with pytest.raises(StageError, match=r"reached 16 of its 48 numbers"):
        stacked.spread()
    spread = stacked.spread(unseen=7.0).reshape(3, 4, 4)
    torch.testing.assert_close(spread[1], one.norm(dim=0)[:, None].expand(4, 4))
    assert bool((spread[2] == 7).all())


def test_a_layer_that_never_runs_and_names_that_do_not_exist() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.used(x)
            return result

    model = seeded_model(Unused())
    asked = service([normal(2, 3)])
    found = asked.of(model, "input_norms")
    with pytest.raises(StageError, match=r"spare.weight.*no calibration sample.*exclude"):
        found["spare.weight"]
    assert found.get("spare") is None
    assert found.seen("used") == 2
    with pytest.raises(StageError, match=r"Did you mean 'used.weight'"):
        found["usedweight"]
    with pytest.raises(StageError, match=r"no weight 'spair.weight'.*Did you mean 'spare.weight'"):
        asked.of(model, "input_norms", ["spair.weight"])
    with pytest.raises(StageError, match=r"no statistic 'input_norm'.*Did you mean 'input_norms'"):
        asked.of(model, "input_norm")
    with pytest.raises(StageError, match=r"no calibration samples"):
        service([]).of(model, "input_norms")


def test_a_buffer_that_keeps_data_is_data() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("state", torch.zeros(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            self.state.copy_(x)  # type: ignore[operator]
            result: Tensor = self.layer(self.state)
            return result

    data = normal(2, 4)
    found = service([data]).of(seeded_model(Remembers()), "input_norms")
    torch.testing.assert_close(found["layer"].value, data.norm(dim=0))
