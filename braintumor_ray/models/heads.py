"""Heads: from the last feature map, or from its global average, to one vector before softmax."""

from torch import Tensor, nn

from braintumor_ray.errors import UsageError
from braintumor_ray.recipes.schema import Head


class MlpHead(nn.Sequential):
    """Pooled vector (B, C) -> dense ReLU -> dropout -> (B, units)."""

    def __init__(self, features: int, units: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, units),
        )


class AttentionHead(nn.Module):
    """Dense 512 -> self-attention over one token (8 heads) -> dense 16 -> (B, units).

    With a single token every attention weight is 1, so the attention is a linear map of its
    values; it is kept as published.
    """

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, 512)
        self.attention = nn.MultiheadAttention(512, 8, batch_first=True)
        self.classify = nn.Sequential(
            nn.Dropout(0.7),
            nn.BatchNorm1d(512),
            nn.Linear(512, 16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.BatchNorm1d(16),
            nn.Linear(16, units),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, C) to (B, units)."""
        token = self.project(pooled).unsqueeze(1)
        attended, _ = self.attention(token, token, token, need_weights=False)
        vector: Tensor = self.classify(attended.squeeze(1))
        return vector


class FlattenHead(nn.Sequential):
    """Target map (B, C, h, w) -> 2x2 max pooling -> flatten -> dense ReLU -> (B, units)."""

    def __init__(
        self, map_shape: tuple[int, int, int], units: int, hidden: int, dropout: float
    ) -> None:
        channels, height, width = map_shape
        super().__init__(
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(channels * (height // 2) * (width // 2), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, units),
        )


def build_head(
    kind: Head, map_shape: tuple[int, int, int], units: int, hidden: int, dropout: float
) -> nn.Module:
    """Build the head of a recipe for a target map of shape (C, h, w).

    Raises:
        UsageError: there is no head of that name.
    """
    features = map_shape[0]
    if kind == "linear":
        linear = nn.Linear(features, units)
        return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear
    if kind == "mlp":
        return MlpHead(features, units, hidden, dropout)
    if kind == "attention":
        return AttentionHead(features, units)
    if kind == "flatten":
        return FlattenHead(map_shape, units, hidden, dropout)
    raise UsageError(f"model.head '{kind}' is unknown; use linear, mlp, attention or flatten")
