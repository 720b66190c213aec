"""HTTP: parse, run a row, send its payload."""
