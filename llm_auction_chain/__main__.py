"""`python -m llm_auction_chain`: the command `llm-auction`."""

import sys

from llm_auction_chain.cli import main

if __name__ == "__main__":
    sys.exit(main())
