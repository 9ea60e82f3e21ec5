"""`python -m rtseg`: the command line."""

from .cli import main

main()
