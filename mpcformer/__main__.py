"""The `mpcformer` command as a module, which is what launchers start: python -m mpcformer."""

from mpcformer.cli import main

if __name__ == "__main__":
    main()
