"""Networks over images as people bring them: small, but with the structure of the large ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def images(size: int = 32, channels: int = 3, samples: int = 24) -> Tensor:
    """Return random images [samples, channels, size, size]."""
    return torch.randn(samples, channels, size, size, generator=torch.Generator().manual_seed(1))


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **more: Any) -> nn.Sequential:
    """Return convolution, batch norm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Basic(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += kept
        return F.relu(out)


class Bottleneck(nn.Module):
    """The block of ResNet-50, ResNeXt with groups."""

    def __init__(self, width: int, inner: int, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, inner, 1),
            conv(inner, inner, 3, groups=groups),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Classifier(nn.Module):
    """Features, a mean over positions, a linear layer."""

    def __init__(self, width: int, *body: nn.Module, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(*body)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


def resnet_18() -> nn.Module:
    return Classifier(64, conv(3, 16), Basic(16, 16), Basic(16, 32, 2), Basic(32, 64, 2))


def resnet_50() -> nn.Module:
    return Classifier(64, conv(3, 64), Bottleneck(64, 16), Bottleneck(64, 16))


def resnext() -> nn.Module:
    return Classifier(64, conv(3, 64), Bottleneck(64, 32, 8), Bottleneck(64, 32, 8))


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


def preactivation_resnet() -> nn.Module:
    return Classifier(32, nn.Conv2d(3, 32, 3, padding=1), PreActivation(32), PreActivation(32))


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + i * growth),
                nn.ReLU(),
                nn.Conv2d(inputs + i * growth, 4 * growth, 1, bias=False),
                nn.BatchNorm2d(4 * growth),
                nn.ReLU(),
                nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        return torch.cat(seen, 1)


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(64), nn.Conv2d(64, 32, 1), nn.AvgPool2d(2))
    return Classifier(
        64, nn.Conv2d(3, 16, 3, padding=1), DenseBlock(16, 12, 4), transition, DenseBlock(32, 8, 4)
    )


class Inception(nn.Module):
    """Four branches, and an auxiliary head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32, stride=2)
        self.one = conv(32, 16, 1)
        self.three = nn.Sequential(conv(32, 24, 1), conv(24, 32))
        self.five = nn.Sequential(conv(32, 8, 1), conv(8, 16, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(32, 16, 1))
        self.auxiliary = nn.Linear(80, 10)
        self.fc = nn.Linear(80, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)
        x = x.mean((2, 3))
        return (self.fc(x), self.auxiliary(x)) if self.training else self.fc(x)


def inception() -> nn.Module:
    return Inception()


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.up(F.relu(self.down(scale))))


class Inverted(nn.Module):
    """The block of MobileNet v2, v3 and EfficientNet."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, excite: bool, act: nn.Module
    ) -> None:
        super().__init__()
        inner = inputs * 4
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            act,
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            act,
        ]
        if excite:
            layers.append(SqueezeExcite(inner, inner // 4))
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v1() -> nn.Module:
    pairs = [nn.Sequential(conv(32, 32, groups=32), conv(32, 32, 1)) for _ in range(2)]
    return Classifier(32, conv(3, 32, stride=2), *pairs)


def mobilenet_v2() -> nn.Module:
    blocks = [Inverted(16, 16, 1, False, nn.ReLU6()), Inverted(16, 24, 2, False, nn.ReLU6())]
    return Classifier(24, conv(3, 16), *blocks)


def mobilenet_v3() -> nn.Module:
    blocks = [Inverted(16, 16, 1, True, nn.Hardswish()), Inverted(16, 24, 2, True, nn.Hardswish())]
    return Classifier(24, conv(3, 16), *blocks)


def efficientnet() -> nn.Module:
    blocks = [Inverted(16, 16, 1, True, nn.SiLU()), Inverted(16, 24, 2, True, nn.SiLU())]
    return Classifier(24, conv(3, 16), *blocks)


class Shuffle(nn.Module):
    """The block of ShuffleNet v2: half of the channels pass, then all are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            conv(half, half, 1),
            nn.Conv2d(half, half, 3, padding=1, groups=half),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.body(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    return Classifier(32, conv(3, 32, stride=2), Shuffle(32), Shuffle(32))


class GroupShuffle(nn.Module):
    """The block of ShuffleNet v1: grouped convolutions with a shuffle between."""

    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(groups)
        self.first = conv(width, width, 1, groups=groups)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.last = nn.Conv2d(width, width, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last(self.depthwise(self.shuffle(self.first(x)))))


def shufflenet_v1() -> nn.Module:
    return Classifier(32, conv(3, 32, stride=2), GroupShuffle(32), GroupShuffle(32))


class Ghost(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.primary = conv(inputs, outputs // 2, 1)
        self.cheap = conv(outputs // 2, outputs // 2, 3, groups=outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)


def ghostnet() -> nn.Module:
    return Classifier(32, conv(3, 16), Ghost(16, 64), Ghost(64, 32), SqueezeExcite(32, 8))


class Fire(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, inner, 1)
        self.one = nn.Conv2d(inner, outputs // 2, 1)
        self.three = nn.Conv2d(inner, outputs // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    return Classifier(
        64, nn.Conv2d(3, 32, 3, 2), Fire(32, 16, 64), nn.MaxPool2d(2), Fire(64, 16, 64)
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 32), nn.MaxPool2d(2), conv(32, 64), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(128, 10)),
    )


def alexnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(32, 64, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * 49, 96), nn.ReLU(), nn.Linear(96, 10)),
    )


class UNet(nn.Module):
    """Concatenates and interpolates, or transposes convolutions, on the way up."""

    def __init__(self, interpolates: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.deep = conv(3, 16), conv(16, 32), conv(32, 64)
        self.interpolates = interpolates
        self.up2: nn.Module = conv(64, 32) if interpolates else nn.ConvTranspose2d(64, 32, 2, 2)
        self.up1: nn.Module = conv(32, 16) if interpolates else nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1 = conv(64, 32), conv(32, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def up(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.interpolates:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return layer(x)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        deep = self.deep(F.max_pool2d(two, 2))
        two = self.join2(torch.cat([two, self.up(self.up2, deep)], 1))
        return self.head(self.join1(torch.cat([one, self.up(self.up1, two)], 1)))


def unet_interpolating() -> nn.Module:
    return UNet(True)


def unet_transposing() -> nn.Module:
    return UNet(False)


class Pyramid(nn.Module):
    """A feature pyramid with heads of boxes and classes at each level."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (
            conv(3, 16, stride=2),
            conv(16, 32, stride=2),
            conv(32, 64, stride=2),
        )
        self.lateral = nn.ModuleList([nn.Conv2d(w, 32, 1) for w in (16, 32, 64)])
        self.smooth = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)])
        self.boxes, self.classes = nn.Conv2d(32, 4, 3, padding=1), nn.Conv2d(32, 6, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        one = self.c1(x)
        two = self.c2(one)
        levels = [side(c) for side, c in zip(self.lateral, (one, two, self.c3(two)), strict=True)]
        for i in (1, 0):
            up = F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
            levels[i] = levels[i] + up
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        return {
            "boxes": [self.boxes(level) for level in levels],
            "classes": [self.classes(level) for level in levels],
        }


def feature_pyramid() -> nn.Module:
    return Pyramid()


class Gate(nn.Module):
    """Channel and spatial attention as in CBAM."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(
            nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width)
        )
        self.space = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.channels(x.mean((2, 3))) + self.channels(x.amax((2, 3)))
        x = x * scale.sigmoid()[:, :, None, None]
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.space(pooled).sigmoid()


def attention_gates() -> nn.Module:
    return Classifier(32, conv(3, 32, stride=2), Gate(32), conv(32, 32), Gate(32))


class Deep(nn.Module):
    """Dilated branches side by side, as in DeepLab."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32, stride=2)
        self.branches = nn.ModuleList(
            [nn.Conv2d(32, 16, 3, padding=d, dilation=d) for d in (1, 2, 4)]
        )
        self.pooled = nn.Conv2d(32, 16, 1)
        self.join = conv(64, 32, 1)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = self.stem(x)
        mean = self.pooled(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[-2:])
        x = torch.cat([*(branch(x) for branch in self.branches), mean], 1)
        return F.interpolate(self.head(self.join(x)), size, mode="bilinear", align_corners=False)


def deeplab() -> nn.Module:
    return Deep()


class PixelShuffler(nn.Module):
    """Super-resolution: residual blocks, then depth to space."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.PReLU(32)) for _ in range(2))
        )
        self.last = nn.Conv2d(32, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        up = F.pixel_shuffle(self.last(first + 0.1 * self.blocks(first)), 2)
        return up + F.interpolate(x, scale_factor=2)


def super_resolution() -> nn.Module:
    return PixelShuffler()


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return Classifier(32, nn.Conv2d(3, 32, 4, 4), ConvNeXtBlock(32), ConvNeXtBlock(32))


class PatchTransformer(nn.Module):
    """A vision transformer with a class token, of torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, batch_first=True, norm_first=True, dropout=0.0
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


def vision_transformer() -> nn.Module:
    return PatchTransformer()


class MixerBlock(nn.Module):
    """Mixes over positions, then over channels."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(positions, 32), nn.GELU(), nn.Linear(32, positions))
        self.channels = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 48, 8, 8)
        self.blocks = nn.Sequential(MixerBlock(16, 48), MixerBlock(16, 48))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def mlp_mixer() -> nn.Module:
    return Mixer()


class ConvMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.spatial = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 32, 5, groups=32, padding="same"), nn.GELU(), nn.BatchNorm2d(32)
            )
            for _ in range(2)
        )
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 1), nn.GELU(), nn.BatchNorm2d(32)) for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        for spatial, mix in zip(self.spatial, self.mix, strict=True):
            x = mix(x + spatial(x))
        return self.head(x.mean((-1, -2)))


def conv_mixer() -> nn.Module:
    return ConvMixer()


class Rep(nn.Module):
    """Parallel 3×3, 1×1 and identity branches with norms of their own, as in RepVGG."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.three = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.one = nn.Conv2d(width, width, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.norms
        return F.relu(a(self.three(x)) + b(self.one(x)) + c(x))


def repvgg() -> nn.Module:
    return Classifier(32, conv(3, 32, stride=2), Rep(32), Rep(32))


class Stochastic(nn.Module):
    """Group norms, standardized weights and a gain, as in BiT and NFNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            Standardized(width, 2 * width, 3, padding=1),
            Standardized(2 * width, width, 1),
        )
        self.norm = nn.GroupNorm(4, width)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.conv2(F.relu(self.conv1(F.relu(self.norm(x)))))


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized in each call."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        deviation = weight.std((1, 2, 3), keepdim=True) + 1e-5
        return self._conv_forward(input, (weight - mean) / deviation, self.bias)


def standardized_weights() -> nn.Module:
    return Classifier(32, nn.Conv2d(3, 32, 3, 2, 1), Stochastic(32), Stochastic(32))


class Involved(nn.Module):
    """Kernels computed from the input, applied to unfolded patches (involution)."""

    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.reduce, self.span = conv(width, width // 4, 1), nn.Conv2d(width // 4, 9 * groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = self.span(self.reduce(x)).view(n, self.groups, 1, 9, h, w)
        patches = F.unfold(x, 3, padding=1).view(n, self.groups, c // self.groups, 9, h, w)
        return (kernel * patches).sum(3).view(n, c, h, w)


def involution() -> nn.Module:
    return Classifier(32, conv(3, 32, stride=2), Involved(32), conv(32, 32, 1))
