"""A tall convolution and then a wide one, in the place of one that is both.

Source: Jaderberg, Vedaldi & Zisserman 2014, arXiv:1405.3866, section 2.1, scheme 2.
"""

from pydantic import Field

from zoopress import Block, Config
from zoopress.techniques import Cost


class SpatiallySeparableConfig(Config):
    """How close to the convolution."""

    rank: int = Field(ge=1, description="channels between the two")


def separate(weight, rank):
    """Return the pair of kernels whose composition is closest to a convolution's.

    Args:
        weight: [out, in, height, width].
        rank: channels between the two, at most min(in · height, out · width).

    Returns:
        tall [rank, in, height, 1] and wide [out, rank, 1, width], by truncated SVD.
    """
    import torch

    out, channels, height, width = weight.shape
    matrix = weight.float().permute(1, 2, 0, 3).reshape(channels * height, out * width)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    tall = (u[:, :rank] * root).T.reshape(rank, channels, height, 1)
    wide = (vh[:rank] * root[:, None]).reshape(rank, out, 1, width).movedim(0, 1)
    return tall.to(weight.dtype), wide.to(weight.dtype)


class SpatiallySeparable(Block[SpatiallySeparableConfig]):
    """Two convolutions, each along one axis, in the place of a plain one."""

    name = "spatially_separable"
    config_type = SpatiallySeparableConfig
    layer = "spatially_separable_conv"

    def refusal(self, module):
        """Take plain two-dimensional convolutions that are more than one pixel high and wide."""
        from zoopress_criterion_loss_block.spatially_separable_layer import unfit

        reason = unfit(module)
        if reason:
            return reason
        height, width = module.kernel_size
        most = min(module.in_channels * height, module.out_channels * width)
        return None if self.config.rank <= most else f"a rank of {most} is all of it"

    def arguments(self, module):
        """Return the rank."""
        return {"rank": self.config.rank}

    def tensors(self, module):
        """Return the closest kernels, and the bias as it is."""
        tall, wide = separate(module.weight.detach(), self.config.rank)
        bias = {} if module.bias is None else {"wide.bias": module.bias.detach()}
        return {"tall.weight": tall, "wide.weight": wide, **bias}

    def cost(self, module):
        """Return what both take, the tall one counted at the output's positions."""
        height, width = module.kernel_size
        macs = self.config.rank * (module.in_channels * height + module.out_channels * width)
        return Cost(macs + (0 if module.bias is None else module.out_channels), macs)
