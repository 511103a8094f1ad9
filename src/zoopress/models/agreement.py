"""Whether a packed weight computes what its dense weight does, on every path that inputs take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.models.packed_call import packed_embedding, packed_linear
from zoopress.models.packing import PackedWeight

ROWS = (1, 4, 17, 65)
"""Numbers of rows at which products are compared: kernels are for few, up to bounds of theirs."""

_DOUBLES = 1 << 22

# Float32 sums of products, of any order, against their exact ones: relative to the absolute
# products. An input rounded to 16 bits is off by 300 times as much.
_SUMS = 64 * torch.finfo(torch.float32).eps


def products(root: nn.Module) -> dict[str, tuple[nn.Module, PackedWeight]]:
    """Return the layers below `root` that multiply by a packed weight as such, by their names."""
    found = {}
    for name, module in root.named_modules():
        packed = module._modules.get("weight")
        if getattr(type(module), "_product", None) == "linear":
            assert isinstance(packed, PackedWeight)
            found[name] = (module, packed)
    return found


def disagreement(
    packed: PackedWeight, input: Tensor, bias: Tensor | None, dtypes: tuple[torch.dtype, ...]
) -> str | None:
    """Say where products with a packed weight are further from the exact ones than dense products.

    Compared are several numbers of rows, memory layouts and float types. A product may be off by
    four times the dense one's error in the same type, or by two steps of the type, and have weights
    of a 16-bit model rounded otherwise.

    Args:
        packed: a weight [out, in], its output axis 0.
        input: [rows, in], float; rows are used again where there are few.
        bias: [out].
        dtypes: of inputs, to compare in.

    Returns:
        What is wrong, None if nothing is.
    """
    with torch.no_grad():
        dense = packed.dense()
        input = input[torch.arange(max(ROWS), device=input.device) % len(input)]
        for dtype in dtypes:
            cast = input.to(dtype)
            if not bool(cast.isfinite().all()):
                continue  # a float16 input that is none
            for given in {None if bias is None else bias.to(dtype), None}:
                problem = _wrong_in(packed, dense, cast, given)
                if problem is not None:
                    return problem
        zero = packed_linear(packed, input[:0], bias)
        if zero.shape != (0, packed.shape[0]):
            return f"no rows of input give an output of shape {tuple(zero.shape)}"
    return None


def wrong_rows(packed: PackedWeight) -> str | None:
    """Say where looked-up rows are not those of the dense weight, None if nowhere.

    Args:
        packed: a weight [rows, columns], its output axis 0.
    """
    count = packed.shape[0]
    indices = torch.tensor([[0, count - 1], [count // 2, 0]], device=packed.device)
    with torch.no_grad():
        expected = F.embedding(indices, packed.value())
        for name, some in (("", indices), ("no ", indices[:0])):
            found = packed_embedding(packed, some)
            wanted = expected[: len(some)]
            if found.dtype != wanted.dtype or not torch.equal(found, wanted):
                return f"`embedding` gives other values than `dense` for {name}indices"
    return None


def _wrong_in(
    packed: PackedWeight, dense: Tensor, input: Tensor, bias: Tensor | None
) -> str | None:
    plain = F.linear(input, dense.to(input.dtype), bias)
    if not bool(plain.isfinite().all()):
        return None
    wide = input.double()
    exact = _in_doubles(dense, lambda rows: F.linear(wide, rows))
    absolute = _in_doubles(dense, lambda rows: F.linear(wide.abs(), rows.abs()))
    rounded = _in_doubles(dense, lambda rows: F.linear(wide.square(), rows.square())).sqrt()
    if bias is not None:
        exact, absolute = exact + bias.double(), absolute + bias.abs().double()
    step = torch.finfo(input.dtype).eps
    # A kernel may take weights as they are before they are rounded to the type of the dense weight.
    anew = 2 * torch.finfo(packed.dtype).eps
    for rows in ROWS:
        some = slice(rows)
        allowed = (
            4 * (plain[some].double() - exact[some]).norm()
            + 2 * step * exact[some].norm()
            + _SUMS * absolute[some].norm()
            + anew * rounded[some].norm()
        )
        for layout, laid in _layouts(input[some], rows < 17):
            found = packed_linear(packed, laid, bias)
            if found.dtype != plain.dtype or found.shape[-2:] != plain[some].shape:
                return (
                    f"`linear` gives {found.dtype} of shape {tuple(found.shape)} for {rows} rows "
                    f"of {input.dtype}, not {plain.dtype} of shape {tuple(plain[some].shape)}"
                )
            off = (found.double().view(exact[some].shape) - exact[some]).norm()
            if not off <= allowed:
                size = exact[some].norm().clamp_min(torch.finfo(torch.float64).tiny)
                return (
                    f"`linear` is off by {float(off / size):.2g} of the output for {rows} rows of "
                    f"{input.dtype}{layout}; up to {float(allowed / size):.2g} is what the dense "
                    "product may lose. It must round neither inputs nor sums more than that product"
                )
    return None


def _in_doubles(dense: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Return [rows, out] of a weight [out, in], some of it in double precision at a time."""
    most = max(1, _DOUBLES // max(1, dense.shape[1]))
    return torch.cat([product(rows.double()) for rows in dense.split(most)], -1)


def _layouts(input: Tensor, all: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield an input as it lies in memory, and in other ways."""
    made: dict[str, Callable[[], Tensor]] = {"": lambda: input}
    if all:
        made[", columns first"] = lambda: input.T.contiguous().T
        made[", at an odd address"] = lambda: torch.cat([input.new_zeros(1), input.reshape(-1)])[
            1:
        ].view(input.shape)
        made[", with more axes"] = lambda: input[None].expand(1, *input.shape)
    for name, make in made.items():
        laid = make()
        yield name, laid
