"""Models and builds carried to a machine without network, in one file."""
