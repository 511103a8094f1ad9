"""Run the command line as `python -m zoopress`."""

from zoopress.commands.cli import main

main()
