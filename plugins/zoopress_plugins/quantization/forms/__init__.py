"""The forms a quantized weight takes, one file each."""
