"""The statistics, a family in a file."""
