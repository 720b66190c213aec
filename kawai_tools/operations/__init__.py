"""Every operation once: what the command line and the API can be asked to do, one file per noun.

A row's function joins the nouns that the workspace holds; it knows neither terminal nor HTTP. ``table.py``
holds all rows; a command imports its own noun's only.
"""
