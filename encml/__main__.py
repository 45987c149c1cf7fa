"""``python -m encml``."""

from encml.cli import main

main()
