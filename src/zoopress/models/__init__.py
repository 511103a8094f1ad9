"""The model in work: weights, recorded edits, packing, bounds."""
