"""The command line: parse, run a row, show its payload."""
