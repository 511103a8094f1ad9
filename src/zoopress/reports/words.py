"""The words of a report, explained to those who read them for the first time."""

from __future__ import annotations

TERMS = {
    "original": "the model as it came, before anything was done to it",
    "compressed": "what the recipe's stages made of it",
    "stage": "one step of the recipe, such as pruning, quantization or entropy coding",
    "times smaller": "bytes of all files of the original ÷ those of the compressed model, with "
    "tokenizer and configs",
    "bits per weight": "bits of the compressed tensor files ÷ numbers in the original",
    "times as fast": "median time of the original ÷ that of the compressed model, measured in "
    "turns on one machine; below 1 the compressed model is slower",
    "cosine": "similarity of the two models' outputs for the same input, mean over inputs; 1 means "
    "the same direction, 0 no relation",
    "label loyalty": "share of inputs that get the label that the original gives them, right or "
    "wrong",
    "probability loyalty": "1 − √(Jensen–Shannon divergence) of the two models' label "
    "probabilities; 1 means equal",
    "± and […]": "95 % confidence, from the same test inputs resampled for both models; a "
    "difference smaller than its ± may be chance",
    "points": "percentage points: from 98.9 % to 98.6 % is −0.3 points",
    "flipped": "the compressed model gives another label than the original",
    "McNemar": "a test on the inputs that exactly one of the two models gets right; p is how "
    "likely so uneven a split is by chance if both are equally good",
    "sensitivity": "how far the outputs move (1 − cosine) if this layer alone is compressed",
    "MACs": "multiplications with addition that one input takes",
    "Pareto front": "what nothing else is better than in every measure",
    "test split": "inputs that no stage has seen, neither to calibrate nor to learn",
}
