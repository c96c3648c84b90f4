#!/usr/bin/env python
"""The pages about shipped weights: ``tools/model_card.py [NAME ...] [--out docs/model_cards]``."""

from bevstack.engine.arguments import model_card_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    model_card_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.model_card import main

    run_tool(main)
