"""The main path: compress, the workbench, the gates."""
