"""The quantization techniques, one file each."""
