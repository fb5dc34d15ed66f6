"""``dare …``: the command line; :mod:`dare_core.cli.main` puts it together."""
