"""The command line: one module per command, each a dataclass whose fields are its options.

Nothing heavy is imported before a command runs, so that help and mistakes answer at once.
"""
