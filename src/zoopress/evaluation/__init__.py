"""The evaluation standard: the figures by which a compressed model is held against its original."""
