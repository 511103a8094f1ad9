"""A model on its way through a chain: the module, and all that must survive with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.edits import (
    PACKED_DTYPES,
    AnyEdit,
    Argument,
    Convert,
    Fold,
    Keep,
    Pack,
    QuantizeInput,
    Replace,
    Resize,
    ScaleInput,
    apply_edit,
    set_tensor,
    submodule,
    tensor_of,
)
from zoopress.models.folding import Folded, computed_alone
from zoopress.models.input_grid import INPUT_GRID, InputGrid
from zoopress.models.input_scale import INPUT_SCALE, ON_INPUT, InputScale
from zoopress.models.on_disk import on_disk, settled
from zoopress.models.packing import AnyLayout, Codes, nonzero_codes, packed_weights
from zoopress.models.precision import accept_float32
from zoopress.models.stand_in import obstacle
from zoopress.models.values import check_values, settable
from zoopress.models.weights import LAST_IS_INPUT, WEIGHT_KINDS, Weight, as_matrix, find_weights


@dataclass
class Model:
    """A module with its structure edits, pruning masks and storage format.

    Techniques change a model through the methods below, never by hand, so that every change is
    recorded and can be replayed when the artifact is loaded.

    Attributes:
        module: the network, in evaluation mode.
        layers: registered layers and packed weights by name.
        edits: what was done to the architecture, in order.
        masks: bool tensors, True where a weight is kept, by the name of the tensor they belong to.
            A mask of a weight that was packed belongs to the buffer of its codes and has the
            codes' logical shape [rows, codes per row]; where zero has one code, it keeps just the
            other codes.
        storage: the container format of the tensors, "safetensors" or "zpz".
        coder: what codes the tensors in zpz: "auto", or the registered name of an entropy coder.
        version: grows with every recorded change, so what was measured at an earlier one is known
            to be out of date.
        updated: full names of the tensors whose values were set, first ones of tied tensors.
    """

    module: nn.Module
    layers: Mapping[str, type] = field(default_factory=dict)
    edits: list[AnyEdit] = field(default_factory=list)
    masks: dict[str, Tensor] = field(default_factory=dict)
    storage: str = "safetensors"
    coder: str = "auto"
    version: int = 0
    updated: dict[str, None] = field(default_factory=dict)  # in order, each once

    def weights(
        self,
        kinds: Collection[str] = WEIGHT_KINDS,
        include: Collection[str] = ("*",),
        exclude: Collection[str] = (),
    ) -> Iterator[Weight]:
        """Yield the float weights, see `find_weights`."""
        return find_weights(self.module, kinds, include, exclude)

    def mask(self, weight: Weight, keep: Tensor) -> None:
        """Prune: set the weights where `keep` is False to zero, for good.

        Args:
            weight: one of `self.weights()`.
            keep: bool, of the parameter's shape. Weights pruned before stay pruned.
        """
        if keep.shape != weight.parameter.shape or keep.dtype != torch.bool:
            raise StageError(
                f"{weight.name}: a mask must be bool of shape {tuple(weight.parameter.shape)}, "
                f"not {keep.dtype} of shape {tuple(keep.shape)}."
            )
        before = self.masks.get(weight.name)
        keep = keep if before is None else keep & before
        with torch.no_grad():
            # Not multiplied: the zeros must be +0.0, whatever the sign of what they replace.
            _give(weight.parameter, torch.where(keep, weight.parameter, 0.0))
        self.masks[weight.name] = settled(keep.clone())
        self.version += 1

    def set_values(self, target: Weight | str, values: Tensor) -> None:
        """Give a parameter or a buffer other values, in every place it is tied to.

        Pruned weights stay zero. The tensor keeps its shape and type; the artifact holds the new
        values.

        Args:
            target: one of `self.weights()`, or the full name of a float parameter or buffer, such
                as "encoder.norm.running_mean".
            values: finite, of the tensor's shape and type, on any device.

        Raises:
            StageError: if there is no such tensor, it is packed, holds no floats or is no part of
                the model's state, or the values do not fit it.
        """
        name, tensor = settable(self.module, target)
        check_values(name, tensor, values)
        keep = self.masks.get(name)
        if keep is None:  # a tied tensor's mask may stand under another of its names
            alike = [each for each, mask in self.masks.items() if mask.shape == tensor.shape]
            keep = next((self.masks[n] for n in alike if self._tensor(n) is tensor), None)
        with torch.no_grad():
            new = values.detach().to(tensor.device)
            if keep is not None:  # not multiplied: the zeros must be +0.0
                new = torch.where(keep.to(tensor.device), new, 0.0)
            _give(tensor, new)
        self.updated[name] = None
        self.values_changed()

    def values_changed(self) -> None:
        """Record that values are others than before, as after a training."""
        self.version += 1

    def select(
        self, path: str, indices: Mapping[str, tuple[int, Tensor]], attributes: Mapping[str, int]
    ) -> None:
        """Resize: keep only some rows or columns of a module's tensors.

        Call it once for each axis that shrinks; masks shrink along.

        Args:
            path: the module.
            indices: for each tensor's name the axis and the int64 indices to keep along it.
            attributes: integer attributes to set, such as {"out_features": 64}.
        """
        module = submodule(self.module, path)
        kept = {
            name: tensor_of(module, name).detach().index_select(axis, index)
            for name, (axis, index) in indices.items()
        }
        edit = Resize(
            module=path,
            shapes={name: list(tensor.shape) for name, tensor in kept.items()},
            attributes=dict(attributes),
        )
        self._apply(edit)
        for name, tensor in kept.items():
            set_tensor(module, name, settled(tensor))
            full = f"{path}.{name}" if path else name
            if full in self.masks:
                axis, index = indices[name]
                self.masks[full] = settled(self.masks[full].index_select(axis, index))

    def keep(self, path: str, indices: Sequence[int]) -> None:
        """Remove all other blocks of a list of modules; those that stay are numbered anew.

        What holds a block's position or their number follows, see `stacks.py`.

        Args:
            path: the list.
            indices: positions to keep, rising.
        """
        # Held until the end, since an object that is gone leaves its id to another.
        masked = {name: self._tensor(name) for name in self.masks}
        self._apply(Keep(module=path, indices=list(indices)))
        names: dict[int, str] = {}
        for name in self.tensors():  # a tied tensor has its mask under the first of its names
            names.setdefault(id(self._tensor(name)), name)
        self.masks = {
            names[id(tensor)]: self.masks[name]
            for name, tensor in masked.items()
            if id(tensor) in names
        }

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Let modules have ordinary weights in the place of computed ones, see `folding.py`.

        Those that are what they were when the context ends are computed again from then on.
        """
        alone = computed_alone(self.module)
        made = [Folded(submodule(self.module, p), p, names) for p, names in alone.items()]
        edits: list[AnyEdit] = [Fold(module=each.path, attributes=each.names) for each in made]
        start = len(self.edits)
        self.edits += edits
        self.version += bool(made)
        yield
        since = self.edits[start + len(edits) :]
        for each, edit in zip(made, edits, strict=True):
            if each.untouched(since, self.masks):
                each.restore()
                self.edits = [other for other in self.edits if other is not edit]
                self.version += 1

    def obstacle(self, path: str) -> str | None:
        """Say why no layer can take the place of the module of a path, whatever it is, or None."""
        return obstacle(submodule(self.module, path))

    def replace(
        self,
        path: str,
        layer: str,
        arguments: Mapping[str, Argument],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Replace a module by a registered layer, within the module's own object.

        Its hooks, a `forward` that was set on it, its attributes and its class for `isinstance`
        stay, see `stand_in.py`. A mask of the module's goes on to hold for the layer's tensor of
        the same name and shape.

        Args:
            path: the module.
            layer: the layer's registered name.
            arguments: what its `from_module` takes.
            tensors: every tensor of the new layer, by its name within the layer.

        Raises:
            StageError: if something of the module would be lost, or the tensors do not fit.
        """
        lost = [
            name
            for name, mask in self.masks.items()
            if name.startswith(f"{path}.")
            and getattr(tensors.get(name.removeprefix(f"{path}.")), "shape", None) != mask.shape
        ]
        if lost:
            raise StageError(
                f"Replacing {path!r} would discard the pruning mask of {', '.join(lost)}. "
                "Put the stage that replaces layers before the stage that prunes them."
            )
        self._apply(Replace(module=path, layer=layer, arguments=dict(arguments)))
        self._fill(submodule(self.module, path), path, tensors)

    def pack(
        self,
        weight: Weight,
        packing: str,
        arguments: Mapping[str, Argument],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Replace a float weight by a registered packed weight, in every place it is tied to.

        Args:
            weight: one of `self.weights()`.
            packing: the packed weight's registered name.
            arguments: what its constructor takes besides shape, type and axis.
            tensors: every buffer of the packed weight, by name.
        """
        mask = self.masks.pop(weight.name, None)
        tensors = {name: settled(tensor.detach()) for name, tensor in tensors.items()}
        dtype = str(weight.parameter.dtype).removeprefix("torch.")
        for place in weight.locations:
            self._apply(
                Pack(
                    module=place.path,
                    attribute=place.attribute,
                    packing=packing,
                    # A bfloat16 model's architecture is rebuilt in torch's default type.
                    dtype=dtype if dtype in PACKED_DTYPES else None,
                    folded=True if weight.output_axis == LAST_IS_INPUT else None,
                    arguments=dict(arguments),
                )
            )
            self._fill(submodule(self.module, place.name), place.name, tensors)
        if mask is not None:
            self._keep_mask(weight, packing, mask)

    def cast(self, names: Collection[str], change: Callable[[Tensor], Tensor]) -> None:
        """Change the float type of tensors; the artifact notes it by how it stores them.

        Args:
            names: full names of tensors, tied ones under each name.
            change: returns a tensor of the same shape in another float type.
        """
        # All are held before one is replaced: an object that is gone leaves its id to another.
        old = {name: self._tensor(name) for name in names}
        changed: dict[int, Tensor] = {}
        for name, tensor in old.items():
            if id(tensor) not in changed:
                new = settled(change(tensor.detach()))
                if isinstance(tensor, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                changed[id(tensor)] = new
            path, _, attribute = name.rpartition(".")
            set_tensor(submodule(self.module, path), attribute, changed[id(tensor)])
        accept_float32(self.module)
        self.version += 1

    def convert(self, path: str, outside: torch.dtype) -> None:
        """Let a module of 16-bit weights compute in 16 bits amid others that do not.

        Floats that come in are rounded to the type of its weights; those that go out are of the
        type that is computed in around it.

        Args:
            path: the module; `cast` its tensors as well.
            outside: float32 or float64.
        """
        name = str(outside).removeprefix("torch.")
        self._apply(Convert.model_validate({"module": path, "outside": name}))

    def quantize_input(
        self, path: str, arguments: Mapping[str, Argument], tensors: Mapping[str, Tensor]
    ) -> None:
        """Round what enters a linear, convolutional or recurrent layer to a grid of integers.

        Whatever its weights are in, and stay in.

        Args:
            path: the layer; of what it is given, the first is rounded.
            arguments: what `make_input_grid` takes besides it.
            tensors: the buffers of an `InputGrid`, by name; none if it is dynamic.

        Raises:
            StageError: if the layer can have no such grid, or the tensors make none.
        """
        self._apply(QuantizeInput(module=path, arguments=dict(arguments)))
        self._fill_input(path, INPUT_GRID, tensors)

    def scale_input(self, path: str, factor: Tensor) -> None:
        """Multiply the channels that enter a layer, before they are rounded if they are.

        Args:
            path: the layer; give its weights, by `set_values`, what keeps its outputs.
            factor: [channels], float32, positive.

        Raises:
            StageError: if the layer cannot have factors, or not these.
        """
        self._apply(ScaleInput(module=path))
        self._fill_input(path, INPUT_SCALE, {"factor": factor})

    def _fill_input(self, path: str, child: str, tensors: Mapping[str, Tensor]) -> None:
        change = submodule(self.module, path)._modules[child]
        assert isinstance(change, (InputGrid, InputScale))
        try:
            self._fill(change, f"{path}.{child}" if path else child, tensors)
            change.check()
        except ValueError as error:
            raise StageError(f"Cannot change the input of {path!r}: {error}.") from error

    def integers(self) -> dict[str, Codes]:
        """Return the integers of all packed weights, by the buffer's full name."""
        return {
            f"{name}.{buffer}": codes
            for name, packed in packed_weights(self.module).items()
            for buffer, codes in packed.integers().items()
        }

    def code_layouts(self) -> dict[str, AnyLayout]:
        """Return how buffers hold their codes, by the buffer's full name."""
        return {
            f"{name}.{buffer}": layout
            for name, packed in packed_weights(self.module).items()
            for buffer, layout in packed.code_layouts().items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by full name, tied ones under each name, buffers of any kind too."""
        found: dict[str, Tensor] = {}
        for path, owner in self.module.named_modules(remove_duplicate=False):
            for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
                if tensor is not None:
                    found[f"{path}.{name}" if path else name] = tensor.detach()
        return found

    def non_persistent(self) -> set[str]:
        """Return the full names of buffers that are no part of the module's state dict."""
        return {
            f"{path}.{name}" if path else name
            for path, owner in self.module.named_modules(remove_duplicate=False)
            for name in owner._non_persistent_buffers_set
        }

    def parameter_count(self) -> int:
        """Return how many numbers the network multiplies or adds with, zeros included.

        Tied weights count once, a packed weight as many as the dense weight it stands for, scales
        and other side information not at all.
        """
        plain = sum(parameter.numel() for parameter in self.module.parameters())
        packed = {}
        for weight in packed_weights(self.module).values():
            first = next(weight.buffers())
            packed[first.data_ptr()] = weight.shape.numel()
        return plain + sum(packed.values())

    def pruned_count(self) -> int:
        """Return how many of `parameter_count` are pruned to zero by a mask."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    def _keep_mask(self, weight: Weight, packing: str, mask: Tensor) -> None:
        """Let the mask of a weight that has been packed hold for its codes."""
        packed = packed_weights(self.module)[weight.name]
        would = f"{weight.name}: packing {packing!r} would discard the weight's pruning mask; "
        if not packed.code_layouts():
            raise StageError(
                f"{would}it does not say with `code_layouts` which of its buffers hold the codes."
            )
        layouts = packed.code_layouts()
        try:
            integers = packed.integers()
        except ValueError as error:
            raise StageError(f"{weight.name}: packing {packing!r}: {error}") from error
        for buffer, codes in integers.items():
            if codes.zero is None:
                raise StageError(
                    f"{would}none of the codes in {buffer!r} stands for zero. Leave pruned "
                    "weights out with 'exclude', or pack them in a form that has a zero."
                )
            rows, columns = codes.values.shape
            if rows * columns != mask.numel():
                raise StageError(
                    f"{would}{buffer!r} holds {rows * columns} codes for {mask.numel()} weights. "
                    "Leave pruned weights out with 'exclude', or pack them one by one."
                )
            keep = as_matrix(mask, weight.output_axis).reshape(rows, columns).clone()
            # What was rounded to zero needs a mask no more: the codes alone say which are kept.
            kept = nonzero_codes(tensor_of(packed, buffer), layouts[buffer])
            self.masks[f"{weight.name}.{buffer}"] = settled(keep if kept is None else keep & kept)
        matrix = as_matrix(packed.dense(), weight.output_axis)
        if bool(matrix[~as_matrix(mask, weight.output_axis)].any()):
            raise StageError(
                f"{would}a pruned weight is no longer zero. This is a bug in the packing: under a "
                "mask every pruned weight must have the code of zero, and that code, `fill` in "
                "`code_layouts`, must stand for zero."
            )

    def _tensor(self, name: str) -> Tensor:
        path, _, attribute = name.rpartition(".")
        return tensor_of(submodule(self.module, path), attribute)

    def _apply(self, edit: AnyEdit) -> None:
        try:
            # New tensors come up on the meta device and are assigned at once: nothing is
            # initialized in vain.
            with torch.device("meta"):
                apply_edit(self.module, edit, self.layers)
        except (ValueError, TypeError) as error:
            remedy = " Leave it out with 'exclude'." if isinstance(edit, Replace) else ""
            raise StageError(
                f"Cannot {edit.edit} module {edit.module!r}: {error}.{remedy}"
            ) from error
        self.edits.append(edit)
        self.version += 1

    def _fill(self, module: nn.Module, path: str, tensors: Mapping[str, Tensor]) -> None:
        found: dict[str, Tensor] = module.state_dict(keep_vars=True)
        # What changes the layer's input is older than it, and stays.
        expected = {n: t for n, t in found.items() if n.split(".")[0] not in ON_INPUT}
        if set(expected) != set(tensors):
            raise StageError(
                f"{path}: the layer has tensors {sorted(expected)}, not {sorted(tensors)}."
            )
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
                raise StageError(
                    f"{path}.{name}: expected {expected[name].dtype} of shape "
                    f"{tuple(expected[name].shape)}, got {tensor.dtype} of shape "
                    f"{tuple(tensor.shape)}."
                )
            owner, _, attribute = name.rpartition(".")
            set_tensor(submodule(module, owner), attribute, settled(tensor.detach().contiguous()))


def _give(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor other values: in place, or as another file's where weights lie on disk."""
    if on_disk() is None:
        tensor.copy_(values)
    else:
        tensor.data = settled(values)
