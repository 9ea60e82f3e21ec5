"""The subcommands, a file each; the command line is put together in `cli.py`."""
