"""``python -m dip_fast`` is the command line."""

from dip_fast.cli import main

main()
