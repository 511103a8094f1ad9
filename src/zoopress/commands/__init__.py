"""The commands of `zoopress`, a module a group; `cli.py` puts them together."""
