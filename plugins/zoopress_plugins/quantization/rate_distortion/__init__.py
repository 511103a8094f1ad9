"""Quantization for coding: integer codes and steps that cost the fewest bits at equal harm."""
