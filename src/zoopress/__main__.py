"""Run the command line as `python -m zoopress`."""

from zoopress.cli import main

main()
