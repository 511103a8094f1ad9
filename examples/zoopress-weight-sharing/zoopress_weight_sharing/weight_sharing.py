"""Weight sharing: the weights of a layer take few values, found by k-means.

Source: Han, Mao & Dally 2016, Deep Compression, arXiv:1510.00149, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zoopress import Claim, Effects, Outcome, Technique, WeightSelection, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress import Context
    from zoopress.models.model import Model

zoopress_hook_interface = "1.1"


class WeightSharingConfig(WeightSelection):
    """How many values, and for which weights."""

    bits: int = Field(default=4, ge=2, le=8, description="2 to this power values for each layer")
    iterations: int = Field(default=30, ge=1, description="most rounds of k-means")


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the centroid closest to each value.

    Args:
        values: [n].
        centroids: [k].

    Returns:
        [n], int64.
    """
    import torch

    ordered, order = centroids.sort(stable=True)
    return order[torch.bucketize(values, (ordered[1:] + ordered[:-1]) / 2)]


def share(values: Tensor, bits: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Cluster values by k-means, started from centroids at equal distances.

    The first centroid stays 0, so pruned weights stay zero; the paper prunes first, too.

    Args:
        values: [n], float.
        bits: of a code; there are 2**bits centroids.
        iterations: most rounds.

    Returns:
        The code of each value [n], int64, and the centroids [2**bits].

    Source: Han et al. 2016, arXiv:1510.00149, sections 3.1 and 3.2 ("linear" initialization).
    """
    import torch

    low, high = float(values.min()), float(values.max())
    centroids = torch.cat([torch.zeros(1), torch.linspace(low, high, 2**bits - 1)]).double()
    values = values.double()
    for _ in range(iterations):
        codes = nearest(values, centroids)
        counts = codes.bincount(minlength=2**bits)
        means = codes.bincount(weights=values, minlength=2**bits) / counts
        moved = torch.where(counts > 0, means, centroids)
        moved[0] = 0.0
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return nearest(values, centroids), centroids


class WeightSharing(Technique[WeightSharingConfig]):
    """Let the weights of each layer share few values, found by k-means."""

    name = "weight_sharing"
    family = "quantization"
    config_type = WeightSharingConfig

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Pack the selected weights."""
        import torch

        from zoopress.coding.bits import pack_codes

        bits = self.config.bits
        weights = self.config.select(model)
        before = after = count = 0
        for weight in context.track(weights):
            matrix = weight.matrix()
            codes, centroids = share(matrix.reshape(-1), bits, self.config.iterations)
            tensors = {
                "codes": pack_codes(codes.view(matrix.shape).to(torch.uint8), bits),
                "centroids": centroids.to(matrix.dtype),
            }
            before += matrix.nbytes
            after += sum(tensor.nbytes for tensor in tensors.values())
            count += matrix.numel()
            model.pack(weight, "weight_sharing", {"bits": bits}, tensors)
        asked, saved = 8 * before / count - bits, 8 * (before - after) / count
        return Outcome(
            touched=[weight.name for weight in weights],
            # Centroids, and rows that end within a byte, may take a quarter of the saving.
            claims=[Claim("bits saved per weight", asked, saved, tolerance=0.25)],
        )


@hookimpl
def zoopress_techniques() -> list[type[WeightSharing]]:
    """Register the technique."""
    return [WeightSharing]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a weight with shared values."""
    return {"weight_sharing": "zoopress_weight_sharing.shared_weight:SharedWeight"}
