"""``python -m secateur``: the command line."""

from secateur.cli.main import main

main()
