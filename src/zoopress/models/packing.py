"""Weights kept in packed form, and the modules that hold them.

A packed weight takes the place of a parameter: module `m` with a parameter `weight` becomes a
module of a subclass of its class whose `weight` is computed from packed tensors, stored under
`weight.codes`, `weight.scale` and so on. So any module works with a packed weight (recurrent,
attention, convolution, custom), and those that need no more than a product or a look-up (linear,
embedding) never build the dense weight where a kernel serves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.kernels.products import CodedRows, multiply, serves
from zoopress.models.codes import (
    AnyLayout as AnyLayout,
    CodeLayout as CodeLayout,
    Codes as Codes,
    OwnCodes as OwnCodes,
    nonzero_codes as nonzero_codes,
    read_codes,
    write_codes,
)
from zoopress.models.computed import computed_property, guards
from zoopress.models.export_form import ExportForm
from zoopress.models.on_disk import settled
from zoopress.models.packed_call import (
    flat_weights,
    ignore_assignment,
    keep_flat_weights,
    linear_in_blocks,
    packed_embedding,
    packed_linear,
    refuse_export,
)
from zoopress.models.weights import as_matrix

DECODED = "decoded as it is multiplied"
"""What `PackedWeight.kernel` says where no dense weight is made, and products are as fast."""

Product = Literal["linear", "embedding"]
"""A product of which a packed weight may be a factor: with vectors, or with one-hot indices."""

Unpacking = Literal["auto", "all", "none"]
"""Which packed weights to turn back into dense ones: those that no kernel serves, all, or none."""


class PackedWeight(nn.Module, ABC):
    """A weight of a known shape, kept in packed form.

    A subclass allocates its buffers in `__init__` on torch's current default device (the meta
    device while an artifact is rebuilt) from the shape and plain arguments alone.

    Attributes:
        shape: of the weight.
        dtype: in which its values are defined; a cast of the model does not change it.
        output_axis: which of its axes counts outputs.
        is_differentiable: whether products are those of the dense weight, see `differentiable`.
        stands_for: the shape of the parameter that it takes the place of, if that is another: of
            experts [experts, out, in] a matrix of all their rows is packed.
    """

    is_differentiable: bool = False
    stands_for: torch.Size | None = None
    _cast_to: torch.dtype | None = None

    def __init__(self, shape: torch.Size, dtype: torch.dtype, output_axis: int) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        self.output_axis = output_axis

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the weight's matrix [n, columns], in its type.

        Override it where they can be made without the others; products then are made of them.

        Args:
            some: a range of the output axis, or indices [n].
        """
        return as_matrix(self.dense(), self.output_axis)[some]

    def kernel(self, product: Product) -> str | None:
        """Name what computes a product here without the dense weight, None if nothing does.

        Override it together with `linear` or `embedding`.
        """
        if product == "embedding":
            return "only the rows looked up are made" if self._makes_rows() else None
        return DECODED if self._decodes() else None

    def coded_rows(self) -> CodedRows | None:
        """Return the weight [out, in] as codes that a product can decode, None if it is none.

        Whoever has it needs no kernel of its own. It shares the weight's buffers, and is asked for
        in each call.
        """
        return None

    @property
    def computes_in(self) -> torch.dtype:
        """The type in which layers see the weight: its own, or what the model was cast to."""
        return self._cast_to or self.dtype

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    def value(self) -> Tensor:
        """Return the weight as layers see it: dense, in its place's shape and type of computing."""
        refuse_export()
        dense = self.dense().to(self.computes_in)
        return dense if self.stands_for is None else dense.reshape(self.stands_for)

    def code_layouts(self) -> Mapping[str, AnyLayout]:
        """Return which buffers hold codes and how, so that all else can see integers.

        In `Integers` buffers [rows, columns], of the weight's matrix, 0 is the code of zero.
        """
        return {}

    def integers(self) -> dict[str, Codes]:
        """Return the integers of every buffer that holds codes.

        Raises:
            ValueError: if a buffer does not hold what `code_layouts` says.
        """
        found = {}
        for buffer, layout in self.code_layouts().items():
            fill = getattr(layout, "fill", None)
            sibling = self._buffers[fill] if isinstance(fill, str) else None
            found[buffer] = read_codes(tensor_in(self, buffer), layout, sibling)
        return found

    def pack_integers(self, buffer: str, values: Tensor) -> Tensor:
        """Return what a buffer holds for other integers; `integers` gives them back.

        Args:
            buffer: its name.
            values: [rows, columns], as `Codes.values` are.

        Raises:
            ValueError: if one does not fit.
        """
        return write_codes(values, self.code_layouts()[buffer])

    def export_form(self) -> ExportForm | None:
        """Return the integers, scales and zero points that the weight is, None if it is none.

        It gives the matrix of `dense`, a row for each place on the output axis, up to the rounding
        of floats. Exporters write what has no such form as a dense weight.
        """
        return None

    def tunable(self) -> tuple[str, ...]:
        """Name the float buffers, such as scales or a codebook, that training may change.

        `dense`, and `embedding` if overridden, must be differentiable with respect to each. While
        one is trained, a float32 parameter of its name stands in its place.
        """
        return ()

    def changed(self) -> None:
        """Forget what was made of the buffers and kept, since training has changed them."""

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Compute input [rows, in] times the weight [out, in] transposed, plus bias [out].

        What layers are called with does not arrive here as it is, see `packed_call`. Neither
        inputs nor sums may be rounded more than the dense product in the input's type rounds, for
        any number of rows. A bias is added by operations that have a derivative.

        Args:
            input: of any float type, in one piece, with a row or more; without gradients.
            bias: of the same type.
        """
        if self._decodes() and input.dtype != torch.float64:
            rows = self.coded_rows()
            assert rows is not None
            return multiply(input, rows, bias)
        if self._makes_rows():
            return linear_in_blocks(self, input, bias)
        return F.linear(input, self.dense().to(input.dtype), bias)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows [..., columns] of the weight [rows, columns] at `indices` [...]."""
        if self._makes_rows() and self.output_axis == 0:
            return self.dense_rows(indices.reshape(-1)).view(*indices.shape, self.shape[1])
        return F.embedding(indices, self.dense())

    def extra_repr(self) -> str:
        """Return what `repr` says of it."""
        return f"{tuple(self.shape)}, dtype={self.computes_in}"

    def _decodes(self) -> bool:
        return (
            self.output_axis == 0
            and len(self.shape) == 2
            and serves(self.device)
            and self.coded_rows() is not None
        )

    def _makes_rows(self) -> bool:
        return type(self).dense_rows is not PackedWeight.dense_rows

    def _tensors(self) -> Iterator[Tensor]:
        return (t for t in (*self._buffers.values(), *self._parameters.values()) if t is not None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the buffers; a cast changes what layers see, not what is stored.

        Scales in another float type would be other scales: float16 has none below 6e-8.
        """
        probe = fn(torch.empty(1, dtype=self.computes_in, device=self.device))
        self._cast_to = None if probe.dtype == self.dtype else probe.dtype

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        self.changed()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.changed()

    def __getstate__(self) -> dict[str, Any]:
        self.changed()  # what was made of the buffers can be made again, and takes memory
        return self.__dict__.copy()


def tensor_in(packed: PackedWeight, buffer: str) -> Tensor:
    """Return a buffer of a packed weight; while it is trained, the parameter in its place."""
    tensor = packed._buffers.get(buffer)
    if tensor is None:
        tensor = packed._parameters.get(buffer)
    if tensor is None:
        raise ValueError(f"{type(packed).__name__} has no buffer {buffer!r}, but a layout of one")
    return tensor


def packed_weights(module: nn.Module) -> dict[str, PackedWeight]:
    """Return every packed weight below `module` by the name of the weight it stands for."""
    return {n: m for n, m in module.named_modules() if isinstance(m, PackedWeight)}


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through the packed weights below `module`.

    Kernels that read packed weights have no derivative, so products are those of the dense weight,
    made for each forward pass.
    """
    packed = packed_weights(module).values()
    before = [weight.is_differentiable for weight in packed]
    try:
        for weight in packed:
            weight.is_differentiable = True
        yield
    finally:
        for weight, flag in zip(packed, before, strict=True):
            weight.is_differentiable = flag


def hold_packed(module: nn.Module, attribute: str, packed: PackedWeight) -> None:
    """Replace the parameter `attribute` of `module` by a packed weight, in place.

    Raises:
        ValueError: if the parameter is missing or has another shape.
    """
    parameter = module._parameters.get(attribute)
    if parameter is None:
        raise ValueError(f"{type(module).__name__} has no parameter {attribute!r} to pack")
    folded = len(packed.shape) == 2 and packed.shape[-1] == parameter.shape[-1]
    if folded and parameter.shape.numel() == packed.shape.numel():
        packed.stands_for = parameter.shape if parameter.shape != packed.shape else None
    elif parameter.shape != packed.shape:
        shapes = f"{tuple(packed.shape)} for a parameter of shape {tuple(parameter.shape)}"
        raise ValueError(f"{attribute!r}: a packed weight of shape {shapes}")
    del module._parameters[attribute]
    if isinstance(module, nn.RNNBase):  # its caches of parameters would keep them alive
        module.__dict__.pop("_flat_weights", None)
        module._flat_weight_refs = []  # not removed: copying and pickling look for it
    names = (*getattr(type(module), "_packed_names", ()), attribute)
    module.__class__ = _holding_class(getattr(type(module), "_unpacked_class", type(module)), names)
    # The class's property would refuse a normal assignment, and must win over the child module.
    module._modules[attribute] = packed


def unpack(root: nn.Module, which: Unpacking = "all") -> dict[str, int]:
    """Turn packed weights below `root` back into dense parameters, in place.

    A dense weight takes as much memory as the original's and computes at its speed. A packed one
    that no kernel serves would be rebuilt in every call, which is slower: "auto" unpacks these.

    Returns:
        How many packed weights there were for each way in which they will compute.
    """
    counts: dict[str, int] = {}
    dense: dict[int, nn.Parameter] = {}
    for module in root.modules():
        for name in getattr(type(module), "_packed_names", ()):
            how = _how(module, name)
            if which == "all" or (which == "auto" and how == _REBUILT):
                how = "dense once loaded"
                # One at a time, and the packed one goes at once: both for all of a model would
                # take more memory than the dense model.
                _hold_dense(module, name, dense)
            counts[how] = counts.get(how, 0) + 1
    return counts


def unpack_one(root: nn.Module, name: str) -> None:
    """Turn one packed weight below `root` back into a dense parameter, in place.

    Args:
        root: the model.
        name: the weight's full name.
    """
    path, _, attribute = name.rpartition(".")
    _hold_dense(root.get_submodule(path), attribute, {})


_REBUILT = "rebuilt in every call"


def _how(module: nn.Module, name: str) -> str:
    """Tell how a module computes with its packed weight `name`."""
    packed = module._modules[name]
    assert isinstance(packed, PackedWeight)
    # A bias is a summand, not a factor.
    product: Product | None = getattr(type(module), "_product", None) if name == "weight" else None
    return (packed.kernel(product) if product else None) or _REBUILT


def _hold_dense(module: nn.Module, name: str, dense: dict[int, nn.Parameter]) -> None:
    """Put a dense parameter in the place of a module's packed weight `name`.

    Tied weights share their packed tensors, and so one dense weight: `dense` has those made before
    by the storage of their packed tensors, none of which is made anew while others are freed.
    """
    packed = module._modules[name]
    assert isinstance(packed, PackedWeight)
    key = next(packed.buffers()).untyped_storage()._cdata  # without memory, too
    if key not in dense:
        dense[key] = nn.Parameter(settled(packed.value()))
    release_packed(module, name, dense[key])


def release_packed(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter in the place of a module's packed weight `name`; undoes `hold_packed`."""
    holding: Any = type(module)
    left = tuple(other for other in holding._packed_names if other != name)
    del module._modules[name]
    base = holding._unpacked_class
    module.__class__ = _holding_class(base, left) if left else base
    module.register_parameter(name, parameter)
    if isinstance(module, nn.RNNBase) and not left:
        module._init_flat_weights()  # the list that it computes with, and references to check it


_CLASSES: dict[tuple[type, tuple[str, ...]], type] = {}


def _holding_class(base: type, names: tuple[str, ...]) -> type:
    """Return the subclass of `base` whose attributes `names` are computed from packed weights."""
    key = (base, tuple(sorted(names)))
    if key not in _CLASSES:
        body: dict[str, Any] = {
            "_packed_names": key[1],
            "_unpacked_class": base,
            "__reduce_ex__": _reduce,  # nobody finds the class by its name
            **guards(base, names),
            **{name: computed_property(_dense_attribute(name)) for name in names},
        }
        forward = getattr(base, "forward", None)
        # nn.MultiheadAttention takes the weight of its output layer and never calls the layer.
        called = not issubclass(base, nn.modules.linear.NonDynamicallyQuantizableLinear)
        if called and forward is nn.Linear.forward and "weight" in names:
            body.update(forward=_linear_forward, _product="linear")
        elif forward is nn.Embedding.forward and "weight" in names:
            body.update(forward=_embedding_forward, _product="embedding")
        elif issubclass(base, nn.RNNBase):
            # nn.RNNBase caches its parameters in this list, which would keep them dense.
            body["_flat_weights"] = property(flat_weights, ignore_assignment)
            # It compares that list with references that a computed weight never equals.
            body["_update_flat_weights"] = keep_flat_weights
        _CLASSES[key] = type(f"Packed{base.__name__}", (base,), body)
    return _CLASSES[key]


def _dense_attribute(name: str) -> Any:
    def get(self: nn.Module) -> Tensor:
        packed = self._modules[name]
        assert isinstance(packed, PackedWeight)
        return packed.value()

    return get


def _linear_forward(self: Any, input: Tensor) -> Tensor:
    return packed_linear(self._modules["weight"], input, self.bias)


def _embedding_forward(self: Any, input: Tensor) -> Tensor:
    packed: PackedWeight = self._modules["weight"]
    if self.max_norm is not None:
        return F.embedding(input, packed.value(), self.padding_idx, self.max_norm, self.norm_type)
    return packed_embedding(packed, input)


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    """Return how to make a copy: as one of the class without packed weights, that then has them."""
    holding = type(self)
    base = holding._unpacked_class
    make, arguments, *rest = base.__reduce_ex__(self, protocol)
    plain = tuple(base if each is holding else each for each in arguments)
    return (_holding, (holding._packed_names, make, plain), *rest)


def _holding(names: tuple[str, ...], make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make a module of a class that holds packed weights, for pickle to fill."""
    module = make(*arguments)
    module.__class__ = _holding_class(type(module), names)
    return module
