"""What techniques on activations share: the calibration pass, and how much a grid harms."""
