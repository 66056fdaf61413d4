"""`python -m posthouse` is the command `posthouse`."""

from posthouse.cli.main import main

main()
