"""`python -m hooked_asr` is the command line."""

from hooked_asr.cli import main

if __name__ == "__main__":
    main()
