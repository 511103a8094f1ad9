"""The published folder: what it holds, how it is written, and how it is trusted."""
