"""Networks of packages with pretrained weights: see `benchmarks/data.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME" does."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        sizes = zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True)
        for length, kernel, stride in sizes:
            missing = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [missing // 2, missing - missing // 2]
        padded = functional.pad(x, pads)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


class InvertedBottleneck(nn.Module):
    """A block of MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expand: int):
        super().__init__()
        inner = channels_in * expand
        self.expand = expand > 1
        if self.expand:
            self.expand_conv = nn.Conv2d(channels_in, inner, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self.project_conv = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3)
        self.shortcut = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu6(self.bn0(self.expand_conv(x))) if self.expand else x
        inner = functional.relu6(self.bn1(self.depthwise_conv(inner)))
        result: Tensor = self.bn2(self.project_conv(inner))
        return result + x if self.shortcut else result


class EfficientNetLite(nn.Module):
    """EfficientNet-lite0 (Tan & Le 2019, arXiv:1905.11946): [n, 3, 224, 224] → [n, 1000]."""

    STAGES = (  # blocks, channels, kernel, stride, expansion
        (1, 16, 3, 1, 1),
        (2, 24, 3, 2, 6),
        (2, 40, 5, 2, 6),
        (3, 80, 3, 2, 6),
        (3, 112, 5, 1, 6),
        (4, 192, 5, 2, 6),
        (1, 320, 3, 1, 6),
    )

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self.blocks = nn.Sequential()
        width = 32
        for count, channels, kernel, stride, expand in self.STAGES:
            for i in range(count):
                first = stride if i == 0 else 1
                self.blocks.append(InvertedBottleneck(width, channels, kernel, first, expand))
                width = channels
        self.conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(functional.relu6(self.bn0(self.conv_stem(x))))
        hidden = functional.relu6(self.bn1(self.conv_head(hidden)))
        logits: Tensor = self.fc(hidden.mean((2, 3)))
        return logits


class Crepe(nn.Module):
    """CREPE (Kim et al. 2018, arXiv:1802.06182), tiny: [n, 1024] → [n, 360] pitches."""

    CHANNELS = (1, 128, 16, 16, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        for i in range(1, 7):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            conv = nn.Conv2d(self.CHANNELS[i - 1], self.CHANNELS[i], kernel, stride)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(self.CHANNELS[i], eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x[:, None, :, None]
        for i in range(1, 7):
            pads = (254, 254) if i == 1 else (31, 32)
            hidden = self.get_submodule(f"conv{i}")(functional.pad(hidden, (0, 0, *pads)))
            hidden = self.get_submodule(f"conv{i}_BN")(hidden.relu())
            hidden = functional.max_pool2d(hidden, (2, 1), (2, 1))
        flat = hidden.permute(0, 2, 1, 3).reshape(len(x), -1)
        return torch.sigmoid(self.classifier(flat))


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-lite0, 4,652,008 parameters."""
    return EfficientNetLite()


def crepe_tiny() -> nn.Module:
    """Return CREPE's smallest network, 486,552 parameters."""
    return Crepe()
