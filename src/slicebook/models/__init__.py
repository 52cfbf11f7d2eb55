"""Tokenizer, prior and what they are made of."""
