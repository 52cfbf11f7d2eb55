"""The commands, each a sentence over one function. Nothing heavy is imported until one runs."""
