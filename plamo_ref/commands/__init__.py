"""One module per command of `plamo-ref`; see plamo_ref/cli.py for the rule."""
