"""Attention transfer: the student looks where its teacher looks.

Source: Zagoruyko & Komodakis 2017, arXiv:1612.03928, eq. 2.
"""

from pydantic import Field

from zoopress import Config, Loss
from zoopress.errors import StageError


class AttentionMapsConfig(Config):
    """Which feature maps."""

    layers: tuple[tuple[str, str], ...] = Field(
        min_length=1, description="pairs of modules that put out images, [student's, teacher's]"
    )


def attention(features):
    """Return where features [samples, channels, …] are large, as unit vectors [samples, places]."""
    from torch.nn.functional import normalize

    return normalize(features.float().square().mean(dim=1).flatten(1), dim=1)


class AttentionMaps(Loss[AttentionMapsConfig]):
    """The mean squared distance of student's and teacher's attention, over all pairs of layers."""

    name = "attention_maps"
    config_type = AttentionMapsConfig
    taught = True

    def layers(self, student, teacher, same):
        """Return the pairs that were named."""
        return self.config.layers

    def prepare(self, seen):
        """Check that they put out feature maps of one height and width; channels may differ."""
        for own, other in seen.states:
            if own.ndim < 3 or own.shape[2:] != other.shape[2:]:
                raise StageError(
                    f"'attention_maps' compares features [samples, channels, …] of one size, not "
                    f"{list(own.shape)} with {list(other.shape)}. Name other layers."
                )

    def value(self, seen, learned):
        """Return the distance of unit vectors, squared: 0 to 4, at most 2 of what is positive."""
        gaps = [
            (attention(own) - attention(other)).square().sum(dim=1).mean()
            for own, other in seen.states
        ]
        return sum(gaps) / len(gaps)
