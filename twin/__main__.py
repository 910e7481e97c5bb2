"""`python -m twin` is `cimtwin`."""

from twin.cli import main

main()
