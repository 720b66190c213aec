"""The catalog: what could be installed, from lists that people have chosen."""
