"""`python -m nsllm`: the same door as the `nsllm` command."""

from nsllm.cli import main

if __name__ == "__main__":
    main()
