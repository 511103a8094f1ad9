"""Training: the loop that recovery, quantization-aware training and distillation share."""
