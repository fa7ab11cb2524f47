"""A word-level LSTM language model, as an ordinary network: windows of words in, logits of the next words out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    """Word-level language model: embedding, LSTM layers, linear decoder; dropout between all of them.

    Every window starts from a zero state: unlike the paper's implementation, which hands the state on from window to
    window, the loss of a batch is a function of its own words, so that batches can be drawn in any order.

    Args:
        inputs: (L,) of one window of words; the network itself works for windows of any length.
        classes: words of the vocabulary.
        hidden: units per layer, and length of the embedding.
        layers: LSTM layers.
        dropout: fraction dropped after the embedding and after every layer.

    Raises:
        ValueError: if the inputs are not windows of words.

    Source: G18 Appendix A.3 and Table 3 (the TensorFlow tutorial, after Zaremba et al. 2014). The paper does not name
        the size; its perplexities are those the tutorial states for hidden=1500, layers=2, dropout=0.65 (10,000 words,
        windows of 35, 66 million parameters). The default is the tutorial's small setting.
    """

    def __init__(self, inputs: tuple[int, ...], classes: int, *, hidden: int = 200, layers: int = 2,
                 dropout: float = 0.0) -> None:
        super().__init__()
        if len(inputs) != 1:
            raise ValueError(f"inputs must be (L,), the shape of a window of words, got {tuple(inputs)}")
        if min(hidden, layers) < 1 or not 0 <= dropout < 1:
            raise ValueError(f"hidden and layers must be >= 1 and dropout in [0, 1), got {hidden}, {layers}, {dropout}")
        self.embedding = nn.Embedding(classes, hidden)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.decoder = nn.Linear(hidden, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits (n, C, L) of the next words for windows of words (n, L)."""
        states, _ = self.lstm(self.dropout(self.embedding(words)))  # (n, L, hidden)
        return self.decoder(self.dropout(states)).transpose(1, 2)
