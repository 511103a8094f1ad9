"""Prefect flows over zoopress, and the recipes that ship with it."""
