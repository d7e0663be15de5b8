"""`python -m inferno.cli` is the `inferno` command."""

from . import main

main()
