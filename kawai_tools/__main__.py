"""``python -m kawai_tools`` is ``kawai``."""

from kawai_tools.cli.app import main

if __name__ == "__main__":
    main()
